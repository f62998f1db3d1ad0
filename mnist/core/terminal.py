"""Colour and bold text on a terminal that supports them; no information is in the colour alone."""

import os
import sys
from typing import TextIO


def takes_color(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal with colours, and `NO_COLOR` is not set.

    An empty variable counts as not set: https://no-color.org.
    """
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def bold(text: str) -> str:
    """Return the text for stdout, bold if it supports colours."""
    return f"\033[1m{text}\033[0m" if takes_color(sys.stdout) else text
