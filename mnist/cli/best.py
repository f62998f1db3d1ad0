"""Rank experiments by validation accuracy, and say how the best one is applied.

    python -m mnist.cli.best [--top N] [--rev REV ... | --all-commits]

It reads `metrics/train.json` and `dvc.lock` of each revision, and no other result: test metrics
cannot sway a choice that does not see them. (`dvc.api.exp_show` reads the file of every metric.)

Accuracies compare where the validation images are the same: cut from one data set, by one
`val_size` and `seed`. What most revisions were scored on counts; the others are marked, without
a rank.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist.core import config, paths, process
from mnist.core.config import Split
from mnist.core.errors import InputError
from mnist.lineage import experiments
from mnist.lineage.experiments import Contents, Revision

ACCURACY, LOSS = "val_accuracy", "val_loss"
FILES = paths.TRAINING_METRICS, paths.LOCK  # that are read of each revision
UI = "http://127.0.0.1:5000"  # of `make ui`


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
        raise InputError(str(paths.TRAINING_METRICS), found="no such file", expected=experiments.MADE)
    val_accuracy = experiments.number(paths.TRAINING_METRICS, metrics, ACCURACY, most=1)
    val_loss = experiments.number(paths.TRAINING_METRICS, metrics, LOSS, most=experiments.MAX_LOSS)
    locked = experiments.locked(lock)
    locked.expect(paths.TRAINING_METRICS, metrics)
    split = {key: value for key, value in locked.params.items() if key in Split.model_fields}
    return Candidate(
        revision=revision,
        val_accuracy=val_accuracy,
        val_loss=val_loss,
        params=locked.params,
        dataset_md5=locked.dataset_md5,
        split=config.check(Split, split, f"{paths.LOCK}: train"),
    )


def table(ranking: Ranking, top: int | None = None) -> list[str]:
    """Rank, name, accuracy and its standard error, loss, and the params that are not all alike, in lines."""
    everyone = [*ranking.ranked, *ranking.others]
    differing = experiments.differing([one.params for one in everyone])
    rows = [["", "experiment", ACCURACY, "", LOSS, *differing]]
    marked = [(str(number), one) for number, one in enumerate(ranking.ranked, 1)][:top]
    for mark, one in [*marked, *[("*", one) for one in ranking.others][:top]]:
        figures = [f"{one.val_accuracy:.4f}", f"± {one.standard_error:.4f}", f"{one.val_loss:.4f}"]
        rows.append(
            [
                mark,
                one.revision.name,
                *figures,
                *(experiments.shown(one.params.get(key)) for key in differing),
            ]
        )
    lines = experiments.aligned(rows, left=1)
    num_left = 1 + len(everyone) - len(rows)
    return [*lines, f"... and {num_left} more"] if num_left else lines


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
    from mnist.tracking import client

    try:
        store = client.connect()
        with client.answering(store.uri):
            pattern = f"%{best.revision.name}%".replace("'", "_")  # which stands for any character
            wanted = f"tags.`{client.EXPERIMENTS}` LIKE '{pattern}' and attributes.status = 'FINISHED'"
            runs = store.client.search_runs([store.experiment_id], wanted)
    except InputError as error:
        return f"left out: {error}"
    for run in runs:
        # Experiments of two commits may share a name. MLflow's number is the one that train.json rounds.
        accuracy = run.data.metrics.get(ACCURACY, math.nan)
        same = math.isclose(accuracy, best.val_accuracy, rel_tol=0, abs_tol=1e-6)
        if same and best.revision.name in run.data.tags[client.EXPERIMENTS].split():
            place = f"#/experiments/{store.experiment_id}/runs/{run.info.run_id}"
            if uri.startswith("http"):
                return f"{paths.shown(uri).rstrip('/')}/{place}"
            return f"{UI}/{place} (make ui)"
    return "no run of this name (make reconcile)"


def report(root: Path, revs: Sequence[str] | None, top: int | None) -> list[str]:
    """All that there is to say, in lines.

    Raises:
        InputError: as `look`.
    """
    found = experiments.look(root, revs)
    candidates, left_out, seen = [], [], set[Contents]()
    for revision, files in zip(
        found.revisions, experiments.contents(root, found.revisions, FILES), strict=True
    ):
        if revision.kind == "workspace" and files in seen:
            continue  # as committed, or as applied
        seen.add(files)
        try:
            candidates.append(read(revision, files))
        except InputError as error:
            left_out.append(f"left out: {revision.name}: {error}")
    left_out += experiments.failures(found)
    lines = []
    if not any(revision.kind == "experiment" for revision in found.revisions):
        start = " ".join(revs) if revs else "HEAD"
        lines.append(
            f"best: no experiment of {start} has finished: dvc exp run --queue -S 'lr=0.01,0.05,0.1'"
        )
    elif candidates:
        ranking = rank(candidates)
        lines += [*table(ranking, top), "", *advice(ranking, found.head)]
        if ranking.best and ranking.best.revision.kind == "experiment":
            lines.append(f"  MLflow  {mlflow_run(ranking.best)}")
    else:
        lines.append("best: none has a result")
    lines += left_out
    return [*lines, *experiments.waiting(found)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ranking; exits with 1 and one line where there is no checkout to look at."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.best", description="Rank experiments by validation accuracy."
    )
    parser.add_argument("--top", type=int, metavar="N", help="show that many (default: all)")
    experiments.add_options(parser)
    options = parser.parse_args(arguments)
    if options.top is not None and options.top < 1:
        parser.error("--top: at least 1")
    with process.reported():
        print("\n".join(report(paths.checkout(), experiments.revs(options), options.top)))


if __name__ == "__main__":
    main()
