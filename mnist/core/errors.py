"""The exceptions that stand for what came from outside rather than for a fault of ours."""


class InputError(ValueError):
    """Something that came from outside is not what it must be.

    It is caught once, in `mnist.core.process.reported`, and printed as one line; a fault of our own
    is an `AssertionError` or whatever it happens to be, and keeps its traceback.

    Args:
        where: the file, key or variable at fault, as its user would name it.
        found: what was there.
        expected: what must be there.
    """

    def __init__(self, where: str, *, found: str, expected: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}")
        self.where, self.found, self.expected = where, found, expected


class AwayError(InputError):
    """A service does not answer now, and may later: what it was to be told can wait.

    Args:
        where: the service, as its user would name it.
        reason: what there was instead of an answer.
    """

    def __init__(self, where: str, reason: str) -> None:
        ValueError.__init__(self, f"{where} does not answer ({reason})")
        self.where, self.found, self.expected = where, reason, "an answer"
