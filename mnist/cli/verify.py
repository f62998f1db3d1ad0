"""The command `mnist verify`: a check that the committed code makes the committed results."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mnist.core import paths
from mnist.core.config import Machine
from mnist.core.errors import InputError

if TYPE_CHECKING:
    from mnist.lineage.compare import Row
    from mnist.lineage.lock import Stage
    from mnist.lineage.sandbox import Sandbox

NUM_LISTED = 8  # files in a message
REMEDY = "run `dvc repro --force`, and commit dvc.lock and metrics"


@click.command()
def verify() -> None:
    """Check that the committed code makes the committed results.

    dvc.lock is compared with the code, params and outputs in git. Then the pipeline runs from start to
    end in a temporary checkout of HEAD, whatever DVC's caches hold, and its outputs are compared with
    the committed ones: those of stages that compute on a device within a tolerance, all others byte
    for byte. The last line begins with "holds: " where every byte is equal, with "holds within the
    tolerances: " where numbers differ as they do between processors, with "does not hold: " otherwise.
    DVC's cache then holds the outputs, so that `dvc repro` need not compute them.

    \b
    Example:
      mnist verify > report.txt     the output of the stages goes to stderr
    """
    sys.exit(not run())


def run() -> bool:
    """Print how the committed results compare with reproduced ones; return whether they hold.

    Raises:
        InputError: something is not committed, or the pipeline fails.
    """
    from mnist.lineage import compare, experiments, git, lock, sandbox

    home = paths.checkout()
    _check_clean(git.text("status", "--porcelain", "--untracked-files=no", folder=home))
    commit = git.text("rev-parse", "HEAD", folder=home)
    with sandbox.temporary("verify") as aside:
        sandbox.check_out(aside, commit)
        committed, stages = lock.read(aside.checkout), lock.pipeline(aside.checkout)
        reasons = lock.stale_reasons(stages, committed)
        kept = [one for one in stages if any(out.kept_in for out in one.outs.values())]
        click.echo("\n".join([f"commit {commit[:12]}", *(f"  NO  {reason}" for reason in reasons)]))
        if not kept:
            found = "no stage whose outs are in git or DVC's cache"
            raise InputError(str(paths.PIPELINE), found=found, expected="one")
        others = ", ".join(one.name for one in stages if one not in kept)
        left_out = f", but not {others}: no out of it is in git or DVC's cache" if others else ""
        click.echo(f"  running {', '.join(one.name for one in kept)} in {aside.checkout}{left_out}")
        _copy_outs(aside, kept)
        sandbox.run(aside, [one.name for one in kept], cache=experiments.cache(home), output=sys.__stderr__)
        rows = list(_rows(aside, kept, committed, lock.read(aside.checkout)))
    click.echo(f"\n{compare.table(rows, 'committed')}\n\n{verdict(reasons, rows)}")
    return not reasons and all(row.answer != "NO" for row in rows)


def _check_clean(status: str) -> None:
    names = [line.strip().partition(" ")[2].strip() for line in status.splitlines()]
    if names:
        more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
        found = f"changes that are not committed: {', '.join(names[:NUM_LISTED])}{more}"
        raise InputError("the checkout", found=found, expected="none: commit them, or `git stash`")


def _copy_outs(aside: "Sandbox", stages: Sequence["Stage"]) -> None:
    """Copy the outs that are in git, before the stages overwrite them."""
    for path in (path for one in stages for path in one.outs):
        if (aside.checkout / path).is_file():
            _copy(aside, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(aside.checkout / path, _copy(aside, path))


def _copy(aside: "Sandbox", path: str) -> Path:
    return aside.folder / "committed" / path


def _rows(
    aside: "Sandbox", stages: Sequence["Stage"], committed: Mapping[str, Any], made: Mapping[str, Any]
) -> Iterator["Row"]:
    """Compare each out with the committed one, in the order of `dvc.yaml`."""
    from mnist.lineage import compare, lock

    wrote, writes = (
        {path: md5 for entry in locked.values() for path, md5 in lock.digests(entry, "outs").items()}
        for locked in (committed, made)
    )
    weights = paths.WEIGHTS.as_posix()
    is_equal = wrote.get(weights) == writes.get(weights)
    tolerances = compare.EQUAL_WEIGHTS if is_equal else compare.OTHER_WEIGHTS
    differing = by_machine(stages)
    for one in stages:
        for path, out in one.outs.items():
            before = compare.Output(
                digest=out.digest if out.kept_in == "git" else wrote.get(path), file=_copy(aside, path)
            )
            after = compare.Output(digest=writes.get(path), file=aside.checkout / path)
            yield from compare.compare(path, before, after, tolerances if one.name in differing else None)


def by_machine(stages: Sequence["Stage"]) -> set[str]:
    """Return the stages whose bytes depend on the machine: those on a device, and all after them."""
    names: set[str] = set()
    for _ in stages:
        for stage in stages:
            keys = {key for params in stage.params.values() for key in params}
            made = {path for other in stages if other.name in names for path in other.outs}
            if keys & set(Machine.model_fields) or made & set(stage.deps):
                names.add(stage.name)
    return names


def verdict(reasons: Sequence[str], rows: Sequence["Row"]) -> str:
    """Return the last line of the report."""
    different = dict.fromkeys(row.what.partition(": ")[0] for row in rows if row.answer == "NO")
    if different:
        return f"does not hold: the committed code makes other {', '.join(different)}; {REMEDY}"
    if reasons:
        return f"does not hold: the outputs are the same, but see the lines with NO above; {REMEDY}"
    others = sum(row.answer != "equal" for row in rows)
    if others:
        return f"holds within the tolerances: {others} numbers or files differ, as on another processor"
    return "holds: the committed code makes every committed output, byte for byte"
