"""Presets: named params for stage `train` and what they claim, as `presets.yaml` holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tabulate import tabulate

from mnist.core import config
from mnist.core.config import Architecture, Fraction, Params, Recipe, Section, Threads, as_typed
from mnist.core.errors import InputError

PRESETS = Path("presets.yaml")


class Settings(Recipe, Architecture):
    """The params of a preset: the network, how it learns, and the threads for the claimed time."""

    num_threads: Threads


class Preset(Section):
    """Params, and the accuracy and the time that they claim."""

    claim: str  # in words
    accuracy: Fraction  # at least, on the test images, as the mean over seeds
    max_seconds: Annotated[float, Field(gt=0)]  # of training
    params: Settings

    @property
    def overrides(self) -> dict[str, str]:
        """Return the params in the form that follows `-S`."""
        return {key: as_typed(value) for key, value in self.params.model_dump().items()}


def load(path: Path) -> dict[str, Preset]:
    """Read and check all presets, in the order of the file.

    Raises:
        InputError: one message that names the preset and every key of it at fault.
    """
    expected = "named params: `name: {claim, accuracy, max_seconds, params}`"
    values = config.read(path, expected=expected)
    if not isinstance(values, dict):
        raise InputError(str(path), found=type(values).__name__, expected=expected)
    return {str(name): config.check(Preset, one, f"{path}: {name}") for name, one in values.items()}


def named(presets: Mapping[str, Preset], name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        InputError: there is none.
    """
    if name in presets:
        return presets[name]
    raise InputError(str(PRESETS), found=f"no preset {name!r}", expected=f"one of {', '.join(presets)}")


def arguments(name: str, preset: Preset, options: tuple[str, ...]) -> list[str]:
    """Return the arguments of `dvc` that run a preset; the user's own options come last, and so win."""
    settings = [part for key, value in preset.overrides.items() for part in ("-S", f"{key}={value}")]
    return ["exp", "run", "--name", name, *settings, *options]


def listing(presets: Mapping[str, Preset], current: Params) -> str:
    """Return each name with its claim, and below it the params that differ from the `current` ones."""
    here, rows = current.model_dump(), []
    for name, preset in presets.items():
        changed = [f"{key}={new}" for key, new in preset.overrides.items() if new != as_typed(here[key])]
        rows += [[name, preset.claim], ["", " ".join(changed)]]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)
