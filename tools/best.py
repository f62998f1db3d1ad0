"""Rank experiments by validation accuracy, and say how the best one is applied.

    python -m tools.best [--top N] [--rev REV ... | --all-commits]

It reads `metrics/train.json` and `dvc.lock` of each revision, and no other result: test metrics
cannot sway a choice that does not see them. (`dvc.api.exp_show` reads the file of every metric.)

Accuracies compare where the validation images are the same: cut from one data set, by one
`val_size` and `seed`. What most revisions were scored on counts; the others are marked, without
a rank.
"""

import argparse
import hashlib
import io
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ruamel.yaml.error import YAMLError

from mnist import identity, params, paths, stage
from mnist.errors import InputError
from mnist.params import Split

ACCURACY, LOSS = "val_accuracy", "val_loss"
MAX_LOSS = sys.float_info.max  # any but infinity
MADE = "what stage train wrote: `dvc repro`"
UI = "http://127.0.0.1:5000"  # of `make ui`

Contents: TypeAlias = tuple[bytes | None, bytes | None]  # metrics/train.json, dvc.lock; None: no such file


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Where a result may be.

    Attributes:
        kind: an experiment of DVC, a commit that experiments started from, or the workspace.
        name: of the experiment; for a commit, what the user calls it, or its short hash.
        commit: full hash; empty for the workspace.
        baseline: full hash of the commit that an experiment started from; empty otherwise.
    """

    kind: Literal["experiment", "commit", "workspace"]
    name: str
    commit: str = ""
    baseline: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A revision with its result.

    Attributes:
        revision: where it is.
        val_accuracy: on the validation images, 0 to 1.
        val_loss: on the same images.
        params: that stage `train` ran with.
        dataset_md5: of the file that the validation images were cut from.
        split: how they were cut.
    """

    revision: Revision
    val_accuracy: float
    val_loss: float
    params: Mapping[str, Any]
    dataset_md5: str
    split: Split

    @property
    def images(self) -> tuple[str, Split]:
        """What determines the validation images."""
        return self.dataset_md5, self.split

    @property
    def standard_error(self) -> float:
        """Of `val_accuracy` p over n images, binomial: sqrt(p (1 - p) / n), but at least one image.

        The formula gives 0 where all are right, as if n images could prove that none will be wrong.
        """
        p, n = self.val_accuracy, self.split.val_size
        return max(math.sqrt(p * (1 - p) / n), 1 / n)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The results, the best first.

    Attributes:
        ranked: those on the same validation images.
        others: those on other images.
    """

    ranked: tuple[Candidate, ...]
    others: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate | None:
        """The first, unless nothing was scored on the same images while there are others."""
        return self.ranked[0] if len(self.ranked) > 1 or not self.others else None

    @property
    def close(self) -> tuple[Candidate, ...]:
        """Those that are at most one standard error worse than the best.

        The one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984, 3.4.3.
        """
        best, *others = self.ranked
        limit = best.standard_error + 1e-6  # train.json has six decimals
        return tuple(one for one in others if best.val_accuracy - one.val_accuracy <= limit)


def rank(candidates: Iterable[Candidate]) -> Ranking:
    """Sort by accuracy, then loss; of equals, what is there already goes first, then by name."""

    def place(one: Candidate) -> tuple[float, float, bool, str]:
        revision = one.revision
        return -one.val_accuracy, one.val_loss, revision.kind == "experiment", revision.name

    ordered = sorted(candidates, key=place)
    (images, _), *_ = Counter(one.images for one in ordered).most_common()  # of equals, the better one's
    return Ranking(
        ranked=tuple(one for one in ordered if one.images == images),
        others=tuple(one for one in ordered if one.images != images),
    )


def read(revision: Revision, contents: Contents) -> Candidate:
    """Take a result out of a revision's files.

    Raises:
        InputError: one is missing or broken, or the metrics are not those that the lock knows.
    """
    metrics, lock = contents
    if metrics is None:
        raise InputError(str(paths.TRAINING_METRICS), found="no such file", expected=MADE)
    if lock is None:
        raise InputError(str(paths.LOCK), found="no such file", expected=MADE)
    val_accuracy, val_loss = _number(metrics, ACCURACY, most=1), _number(metrics, LOSS, most=MAX_LOSS)
    try:
        train = identity.read_yaml(lock.decode())["stages"]["train"]
        md5s = {entry["path"]: entry["md5"] for entry in [*train["deps"], *train["outs"]]}
        values = dict(train["params"][str(paths.PARAMS)])
        dataset_md5, metrics_md5 = (md5s[str(path)] for path in (paths.DATASET, paths.TRAINING_METRICS))
    except (YAMLError, UnicodeDecodeError, LookupError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(str(paths.LOCK), found=found, expected=MADE) from None
    if hashlib.md5(metrics, usedforsecurity=False).hexdigest() != metrics_md5:
        raise InputError(str(paths.TRAINING_METRICS), found="not the file that dvc.lock knows", expected=MADE)
    split = {key: value for key, value in values.items() if key in Split.model_fields}
    return Candidate(
        revision=revision,
        val_accuracy=val_accuracy,
        val_loss=val_loss,
        params=values,
        dataset_md5=dataset_md5,
        split=params.check(Split, split, f"{paths.LOCK}: train"),
    )


def _number(metrics: bytes, key: str, *, most: float) -> float:
    try:
        values = json.loads(metrics)
    except ValueError as error:
        raise InputError(str(paths.TRAINING_METRICS), found=f"no JSON ({error})", expected=MADE) from None
    value = values.get(key) if isinstance(values, dict) else None
    # To Python, true is a number; NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        found = "nothing" if value is None else repr(value)
        raise InputError(f"{paths.TRAINING_METRICS}: {key}", found=found, expected=f"0 to {most:g}")
    return float(value)


def table(ranking: Ranking, top: int | None = None) -> list[str]:
    """Rank, name, accuracy and its standard error, loss, and the params that are not all alike, in lines."""
    everyone = [*ranking.ranked, *ranking.others]
    keys = dict.fromkeys(key for one in everyone for key in one.params)
    differing = [key for key in keys if len({_shown(one.params.get(key)) for one in everyone}) > 1]
    rows = [["", "experiment", ACCURACY, "", LOSS, *differing]]
    marked = [(str(number), one) for number, one in enumerate(ranking.ranked, 1)][:top]
    for mark, one in [*marked, *[("*", one) for one in ranking.others][:top]]:
        figures = [f"{one.val_accuracy:.4f}", f"± {one.standard_error:.4f}", f"{one.val_loss:.4f}"]
        rows.append([mark, one.revision.name, *figures, *(_shown(one.params.get(key)) for key in differing)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = row[1].ljust(widths[1])
        lines.append("  ".join(cells).rstrip())
    num_left = 1 + len(everyone) - len(rows)
    return [*lines, f"... and {num_left} more"] if num_left else lines


def _shown(value: Any) -> str:
    """A param as it is typed after `-S key=`."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def advice(ranking: Ranking, head: str) -> list[str]:
    """What to make of the ranking, with HEAD at the commit `head`, in lines."""
    lines = []
    if ranking.others:
        lines.append("* scored on other validation images (data, val_size or seed): no comparison, no rank")
    best = ranking.best
    if best is None:
        return [*lines, "best: none, since no two were scored on the same validation images"]
    said = f"best: {best.revision.name}"
    if best.revision.kind != "experiment":
        said += ", which no experiment beats"
    if ranking.close:
        num = "1 other is" if len(ranking.close) == 1 else f"{len(ranking.close)} others are"
        known = [one.revision.name for one in ranking.close if one.revision.kind != "experiment"]
        among = f" ({' and '.join(known)} among them)" if known else ""
        said += f"; {num} within one standard error on {best.split.val_size} images{among}"
        said += ": prefer the cheaper or simpler"
    return [*lines, said, *_commands(best.revision, head)]


def _commands(best: Revision, head: str) -> list[str]:
    if best.kind == "experiment":
        # From another commit, `dvc exp apply` would bring that commit's code along.
        there = "" if best.baseline == head else f"git checkout {best.baseline[:12]} && "
        return [
            f"  apply   {there}dvc exp apply {best.name}",
            f"  branch  {there}dvc exp branch {best.name} {best.name}-branch",
        ]
    if best.kind == "commit" and best.commit != head:
        return [f"  apply   git checkout {best.commit[:12]} && dvc checkout"]
    return []


def mlflow_run(best: Candidate) -> str:
    """Name and address of an experiment's run, or why there is none to tell."""
    uri = paths.store_uri()
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if uri.startswith("sqlite:") and not Path(file).exists():  # to open it would make it
        return f"no run: there is no {file} (make reconcile)"
    with stage.heavy_imports():
        from mnist import tracking

    try:
        store = tracking.connect()
        with tracking.answering(store.uri):
            pattern = f"%{best.revision.name}%".replace("'", "_")  # which stands for any character
            wanted = f"tags.`{tracking.EXPERIMENTS}` LIKE '{pattern}' and attributes.status = 'FINISHED'"
            runs = store.client.search_runs([store.experiment_id], wanted)
    except InputError as error:
        return f"left out: {error}"
    for run in runs:
        # Experiments of two commits may share a name. MLflow's number is the one that train.json rounds.
        accuracy = run.data.metrics.get(ACCURACY, math.nan)
        same = math.isclose(accuracy, best.val_accuracy, rel_tol=0, abs_tol=1e-6)
        if same and best.revision.name in run.data.tags[tracking.EXPERIMENTS].split():
            place = f"#/experiments/{store.experiment_id}/runs/{run.info.run_id}"
            if uri.startswith("http"):
                return f"{paths.shown(uri).rstrip('/')}/{place}"
            return f"{UI}/{place} (make ui)"
    return "no run of this name (make reconcile)"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the repository knows.

    Attributes:
        head: full hash of HEAD.
        revisions: the commits, their experiments, and the workspace where HEAD is one of the commits.
        failed: names of the experiments that the queue ran without success.
        num_queued: experiments that wait in the queue.
        num_running: experiments that the queue runs.
    """

    head: str
    revisions: tuple[Revision, ...]
    failed: tuple[str, ...]
    num_queued: int
    num_running: int


def look(root: Path, revs: Sequence[str] | None) -> Sweep:
    """Find the experiments that started from the commits `revs`; None: from any commit.

    Raises:
        InputError: the folder `root` is no checkout with git and DVC, or has no such commit.
    """
    with stage.heavy_imports():
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc.repo.experiments.utils import exp_refs_by_baseline

    head = _commit(root, "HEAD")
    commits = {_commit(root, rev): rev for rev in (["HEAD"] if revs is None else revs)}
    try:
        with Repo(str(root)) as repo:
            # Not `repo.experiments.ls`, which fails while `dvc repro` holds the lock.
            experiments = [
                Revision(kind="experiment", name=ref.name, commit=repo.scm.get_ref(str(ref)), baseline=start)
                for start, refs in exp_refs_by_baseline(
                    repo.scm, None if revs is None else set(commits)
                ).items()
                for ref in refs
            ]
            queue = repo.experiments.celery_queue
            queued, running = list(queue.iter_queued()), list(queue.iter_active())
            failed = [done.entry for done in queue.iter_failed()]
    except DvcException as error:
        raise InputError(str(root), found=str(error), expected="a checkout with git and DVC") from None
    if revs is None:
        starts = sorted({one.baseline for one in experiments} - set(commits))
        commits |= {start: start[:7] for start in starts}
    else:
        queued, running, failed = (
            [entry for entry in entries if entry.baseline_rev in commits]
            for entries in (queued, running, failed)
        )
    revisions = [Revision(kind="commit", name=name, commit=commit) for commit, name in commits.items()]
    revisions += experiments
    if head in commits:
        revisions.append(Revision(kind="workspace", name="workspace"))
    finished = {one.name for one in experiments}
    return Sweep(
        head=head,
        revisions=tuple(revisions),
        failed=tuple(sorted({entry.name or entry.stash_rev[:7] for entry in failed} - finished)),
        num_queued=len(queued),
        num_running=len(running),
    )


def _commit(root: Path, rev: str) -> str:
    """The full hash of what a user calls a commit."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{rev} in {root}", found="no such commit", expected="one of a git checkout")
    return done.stdout.strip()


def contents(root: Path, revisions: Sequence[Revision]) -> list[Contents]:
    """The two files of each revision, by one git process for all of them."""
    files = paths.TRAINING_METRICS, paths.LOCK
    names = [f"{one.commit}:./{file.as_posix()}" for one in revisions if one.commit for file in files]
    command = ["git", "cat-file", "--batch"]
    done = subprocess.run(command, cwd=root, input="\n".join(names).encode(), capture_output=True, check=True)
    stream, found = io.BytesIO(done.stdout), []
    for one in revisions:
        pair = []
        for file in files:
            if one.commit:
                *_, size = stream.readline().split()  # "<hash> blob <size>", or "<name> missing"
                pair.append(None if size == b"missing" else stream.read(int(size) + 1)[:-1])
            else:
                pair.append((root / file).read_bytes() if (root / file).is_file() else None)
        found.append((pair[0], pair[1]))
    return found


def report(root: Path, revs: Sequence[str] | None, top: int | None) -> list[str]:
    """All that there is to say, in lines.

    Raises:
        InputError: as `look`.
    """
    sweep = look(root, revs)
    candidates, left_out, seen = [], [], set[Contents]()
    for revision, files in zip(sweep.revisions, contents(root, sweep.revisions), strict=True):
        if revision.kind == "workspace" and files in seen:
            continue  # as committed, or as applied
        seen.add(files)
        try:
            candidates.append(read(revision, files))
        except InputError as error:
            left_out.append(f"left out: {revision.name}: {error}")
    left_out += [f"left out: {name}: it failed, `dvc queue logs {name}` says why" for name in sweep.failed]
    lines = []
    if not any(revision.kind == "experiment" for revision in sweep.revisions):
        start = " ".join(revs) if revs else "HEAD"
        lines.append(
            f"best: no experiment of {start} has finished: dvc exp run --queue -S 'lr=0.01,0.05,0.1'"
        )
    elif candidates:
        ranking = rank(candidates)
        lines += [*table(ranking, top), "", *advice(ranking, sweep.head)]
        if ranking.best and ranking.best.revision.kind == "experiment":
            lines.append(f"  MLflow  {mlflow_run(ranking.best)}")
    else:
        lines.append("best: none has a result")
    lines += left_out
    if sweep.num_running:
        lines.append(f"{sweep.num_running} still running: dvc queue status")
    if sweep.num_queued:
        lines.append(f"{sweep.num_queued} still queued: dvc queue start -j 2")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ranking; exits with 1 and one line where there is no checkout to look at."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.best", description="Rank experiments by validation accuracy."
    )
    parser.add_argument("--top", type=int, metavar="N", help="show that many (default: all)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--rev", nargs="+", default=["HEAD"], help="started from these commits (default: HEAD)"
    )
    where.add_argument("--all-commits", action="store_true", help="started from any commit")
    options = parser.parse_args(arguments)
    if options.top is not None and options.top < 1:
        parser.error("--top: at least 1")
    with stage.reported():
        print("\n".join(report(paths.checkout(), None if options.all_commits else options.rev, options.top)))


if __name__ == "__main__":
    main()
