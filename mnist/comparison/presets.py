"""What `presets.yaml` may hold: named params for stage `train`, and what they claim."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mnist.core import config
from mnist.core.config import Architecture, Fraction, Recipe, Section, Threads
from mnist.core.errors import InputError

PRESETS = Path("presets.yaml")
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # one that DVC takes for an experiment, and a shell for a word


class Settings(Recipe, Architecture):
    """The params of a preset: the network and how it learns, and the threads for the claimed time."""

    num_threads: Threads


class Preset(Section):
    """Params, and what they are to show, by one limit of accuracy and one of time."""

    claim: Annotated[str, Field(pattern=r"^\S.*$")]  # a line for people
    accuracy: Fraction  # at least, on the test images, as the mean over seeds
    max_ratio: Annotated[float, Field(gt=0)] | None = None  # of training to the tutorial's epoch
    max_seconds: Annotated[float, Field(gt=0)] | None = None  # of training
    params: Settings

    @property
    def overrides(self) -> dict[str, str]:
        """Its params as they are typed after `-S`."""
        return {key: shown(value) for key, value in self.params.model_dump().items()}


def shown(value: Any) -> str:
    """A param's value as it is typed after `-S key=`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(path: Path) -> dict[str, Preset]:
    """Read and check all presets, in the file's order, numbers as in `params.yaml`.

    Raises:
        InputError: one message that names the preset and every key of it at fault.
    """
    expected = "named params: `name: {claim, accuracy, max_ratio or max_seconds, params}`"
    values = config.read(path, expected=expected)
    if not isinstance(values, dict):
        raise InputError(str(path), found=type(values).__name__, expected=expected)
    for name in values:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise InputError(f"{path}: {name}", found="this name", expected="letters, digits, - and _")
    presets = {name: config.check(Preset, value, f"{path}: {name}") for name, value in values.items()}
    for name, preset in presets.items():
        limits = [preset.max_ratio, preset.max_seconds]
        if limits.count(None) != 1:
            found = "neither" if None in limits else "both"
            raise InputError(f"{path}: {name}", found=found, expected="max_ratio or max_seconds")
    return presets


def named(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: there is none; the message has the closest name.
    """
    if name in presets:
        return presets[name]
    close = difflib.get_close_matches(name, presets, n=1)
    expected = f"{close[0]!r}, perhaps" if close else f"one of {', '.join(presets)}"
    raise InputError(str(PRESETS), found=f"no preset {name!r}", expected=expected)
