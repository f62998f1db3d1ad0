"""The one exception that stands for a user's mistake rather than for ours."""


class InputError(ValueError):
    """Something that came from outside is not what it must be.

    It is caught once, in `mnist.stage.main`, and printed as one line; a fault of our own
    is an `AssertionError` or whatever it happens to be, and keeps its traceback.

    Args:
        where: the file, key or variable at fault, as its user would name it.
        found: what was there.
        expected: what must be there.
    """

    def __init__(self, where: str, *, found: str, expected: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}")
