"""Colour and weight on a terminal that takes them; what they say is in the words, too."""

import os
import sys
from typing import TextIO


def takes_color(stream: TextIO) -> bool:
    """Whether what goes there may have colours: a terminal that knows them, and no `NO_COLOR`.

    The variable counts where it is not empty: https://no-color.org.
    """
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def bold(text: str) -> str:
    """For stdout; just the text where that takes no such thing."""
    return f"\033[1m{text}\033[0m" if takes_color(sys.stdout) else text
