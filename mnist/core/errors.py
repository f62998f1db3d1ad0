"""Exceptions for what comes from outside: a file, a param, a variable, a service."""


def printable(text: object) -> str:
    """Return a text from outside in one line, without characters that control a terminal."""
    return "".join(one if one.isprintable() else "?" for one in str(text))


class InputError(ValueError):
    """Something from outside is not what is expected.

    It is caught once, in `mnist.core.process.reported`, and printed as one line. A fault of this project is
    any other exception and keeps its traceback.

    Args:
        where: the file, key or variable, as its user would name it.
        found: its content.
        expected: the content that is allowed.
    """

    def __init__(self, where: str, *, found: str, expected: str) -> None:
        lines = f"{where}: found {found}, expected {expected}".split("\n")
        super().__init__("\n".join(map(printable, lines)))
        self.where, self.found, self.expected = where, found, expected


class ServiceUnavailableError(InputError):
    """A service does not answer now; it may answer later.

    Args:
        where: the service, as its user would name it.
        reason: the error in place of an answer.
    """

    def __init__(self, where: str, reason: str) -> None:
        ValueError.__init__(self, printable(f"{where} does not answer ({reason})"))
        self.where, self.found, self.expected = where, reason, "an answer"
