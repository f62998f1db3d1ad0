"""Run a preset, params that show what SimpleCNN can do, as a DVC experiment; without a name, list them.

    python -m mnist.cli.preset [NAME [options of `dvc exp run`, such as --queue, --temp, -S seed=3]]

A preset is nothing but `-S` options, and the command is printed before it runs. What follows the
name comes after them, and of two values for one param DVC takes the last.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path

from mnist.comparison import presets
from mnist.comparison.presets import Preset
from mnist.core import config, paths, process
from mnist.core.config import Params
from mnist.core.errors import InputError


def listing(known: Mapping[str, Preset], current: Params) -> list[str]:
    """Each name with its claim, and below it the params that differ from `params.yaml`, in lines."""
    width = max(map(len, known), default=0)
    lines = []
    for name, preset in known.items():
        there = current.model_dump()
        differing = [
            f"{key}={value}" for key, value in preset.overrides.items() if value != presets.shown(there[key])
        ]
        lines += [f"{name.ljust(width)}  {preset.claim}", f"{' ' * width}  {' '.join(differing)}".rstrip()]
    return [*lines, "run one: python -m mnist.cli.preset NAME (or make preset NAME=...)"]


def command(name: str, preset: Preset, options: Sequence[str], taken: Collection[str]) -> list[str]:
    """The plain command for a preset, with the user's own options last."""
    named = [] if _names_itself(options) else ["--name", free_name(name, taken)]
    sets = [part for key, value in preset.overrides.items() for part in ("-S", f"{key}={value}")]
    return ["dvc", "exp", "run", *named, *sets, *options]


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of `name-2`, `name-3`, ... that is free, as are those that DVC derives from it.

    DVC refuses a name that an experiment of this commit has, and lets two that wait in its queue
    have one name, of which the last to end replaces the other. Of the name of a sweep it makes
    `name-1`, `name-2`, ...
    """
    for number in count(1):
        wanted = name if number == 1 else f"{name}-{number}"
        if not any(one == wanted or re.fullmatch(re.escape(wanted) + r"-\d+", one) for one in taken):
            return wanted
    raise AssertionError


def _names_itself(options: Sequence[str]) -> bool:
    return any(option.startswith(("-n", "--name")) for option in options)


def taken_names(root: Path) -> set[str]:
    """Those of the experiments of HEAD, and of all that wait in DVC's queue or run.

    Raises:
        InputError: the folder `root` is no checkout with git and DVC.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.experiments.utils import exp_refs_by_baseline

    try:
        with Repo(str(root)) as repo:
            found = exp_refs_by_baseline(repo.scm, {repo.scm.get_rev()})
            queue = repo.experiments.celery_queue
            waiting = [*queue.iter_queued(), *queue.iter_active()]
    except DvcException as error:
        raise InputError(str(root), found=str(error), expected="a checkout with git and DVC") from None
    return {ref.name for refs in found.values() for ref in refs} | {
        entry.name for entry in waiting if entry.name
    }


def run(name: str, options: Sequence[str]) -> int:
    """Print the command for a preset, run it, and return its exit status.

    Raises:
        InputError: there is no such preset, or no checkout to run it in.
    """
    preset = presets.named(presets.load(presets.PRESETS), name)
    typed = command(name, preset, options, taken_names(paths.checkout()))
    print(f"{name}: {preset.claim}")
    print(shlex.join(typed), flush=True)
    # As after `source .venv/bin/activate`: DVC and the stages' Python are those of this process.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.run(typed, env={**os.environ, "PATH": path}, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> None:
    """List the presets or run one; exits as DVC does, with 1 and one line for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.preset",
        description="Run a preset as a DVC experiment, or list the presets.",
    )
    parser.add_argument("name", nargs="?", help="of the preset (default: list them)")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, help="of `dvc exp run`: --queue, --temp, -S seed=3"
    )
    parsed, before = parser.parse_known_args(arguments)
    if before:
        parser.error(f"{before[0]}: expected the name of a preset, and options after it")
    with process.reported():
        if parsed.name is not None:
            sys.exit(run(parsed.name, parsed.options))
        print("\n".join(listing(presets.load(presets.PRESETS), config.load(paths.PARAMS))))


if __name__ == "__main__":
    main()
