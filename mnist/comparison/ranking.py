"""The order of experiments by validation accuracy, and the commands that apply the best one."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist.comparison.recipes import aligned, differing
from mnist.comparison.results import Result, load_results
from mnist.core import paths
from mnist.core.config import Split, as_typed

ACCURACY, LOSS = "val_accuracy", "val_loss"
ROUNDING = 1e-6  # of the accuracies in metrics/train.json


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Results, the best first.

    Attributes:
        ranked: those on the same validation images.
        others: those on other validation images, whose accuracies do not compare.
    """

    ranked: tuple[Result, ...]
    others: tuple[Result, ...]

    @property
    def best(self) -> Result | None:
        """Return the best result, or None if no two have the same validation images."""
        return self.ranked[0] if len(self.ranked) > 1 or not self.others else None

    @property
    def close(self) -> tuple[Result, ...]:
        """Return the results that are at most one standard error worse than the best.

        The one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984, 3.4.3.
        """
        best, *others = self.ranked
        least = best.numbers[ACCURACY] - standard_error(best) - ROUNDING
        return tuple(one for one in others if one.numbers[ACCURACY] >= least)


def rank(results: Iterable[Result]) -> Ranking:
    """Sort by accuracy, then loss, then whether it is in the checkout already, then name.

    Results are ranked where most of them have the same validation images.
    """

    def place(one: Result) -> tuple[float, float, bool, str]:
        revision = one.revision
        return -one.numbers[ACCURACY], one.numbers[LOSS], revision.kind == "experiment", revision.name

    ordered = sorted(results, key=place)
    ((images, _),) = Counter(map(_images, ordered)).most_common(1)  # of equals, those of the better one
    return Ranking(
        ranked=tuple(one for one in ordered if _images(one) == images),
        others=tuple(one for one in ordered if _images(one) != images),
    )


def _images(result: Result) -> tuple[str, Split]:
    """Return what determines the validation images."""
    return result.dataset_md5, result.split


def standard_error(result: Result) -> float:
    """Return the standard error of accuracy p on n images: sqrt(p (1 - p) / n), but at least one image.

    The formula gives 0 where all are right, though n images cannot prove that none will be wrong.
    """
    p, n = result.numbers[ACCURACY], result.split.val_size
    return max(math.sqrt(p * (1 - p) / n), 1 / n)


def table(ranking: Ranking, top: int | None = None) -> str:
    """Return rank, name, accuracy with its standard error, loss, and the params that differ."""
    everyone = [*ranking.ranked, *ranking.others]
    keys = differing([one.params for one in everyone])
    marked = [(str(number), one) for number, one in enumerate(ranking.ranked, 1)][:top]
    marked += [("*", one) for one in ranking.others][:top]
    rows = [
        [
            mark,
            one.revision.name,
            f"{one.numbers[ACCURACY]:.4f}",
            f"± {standard_error(one):.4f}",
            f"{one.numbers[LOSS]:.4f}",
            *(as_typed(one.params.get(key)) for key in keys),
        ]
        for mark, one in marked
    ]
    headers = ["", "experiment", ACCURACY, "", LOSS, *keys]
    text = aligned(rows, headers, left={1})
    num_left = len(everyone) - len(rows)
    return f"{text}\n... and {num_left} more" if num_left else text


def advice(ranking: Ranking, head: str) -> list[str]:
    """Return the best, what is as good, and how to apply it where HEAD is the commit `head`, in lines."""
    lines = []
    if ranking.others:
        lines.append("* scored on other validation images (data, val_size or seed): no comparison, no rank")
    best = ranking.best
    if best is None:
        return [*lines, "best: none, since no two were scored on the same validation images"]
    line = f"best: {best.revision.name}"
    if best.revision.kind != "experiment":
        line += ", which no experiment beats"
    if ranking.close:
        line += (
            f"; {len(ranking.close)} more within one standard error on {best.split.val_size} images:"
            " prefer the cheaper or simpler"
        )
    return [*lines, line, *_commands(best, head)]


def _commands(best: Result, head: str) -> list[str]:
    revision = best.revision
    if revision.kind == "experiment":
        # From another commit, `dvc exp apply` would bring that commit's code along.
        start = "" if revision.baseline == head else f"git checkout {revision.baseline[:12]} && "
        return [
            f"  apply   {start}dvc exp apply {revision.name}",
            f"  branch  {start}dvc exp branch {revision.name} {revision.name}-branch",
            f"  MLflow  make ui, then the run {revision.name}",
        ]
    if revision.kind == "commit" and revision.commit != head:
        return [f"  apply   git checkout {revision.commit[:12]} && dvc checkout"]
    return []


def report(root: Path, revs: Sequence[str] | None, top: int | None = None) -> str:
    """Return the ranking of the experiments that started from `revs`; None: from any commit.

    It reads `metrics/train.json` and `dvc.lock` of each, and no test metric: a choice that does not see
    the test images leaves their accuracy an honest estimate.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    known = load_results(root, revs, paths.TRAINING_METRICS, (ACCURACY, LOSS))
    if not known.num_experiments:
        start = " ".join(revs) if revs else "HEAD"
        lines = [f"best: no experiment of {start} has finished: dvc exp run --queue -S 'lr=0.01,0.05,0.1'"]
    elif known.found:
        ranking = rank(known.found)
        lines = [table(ranking, top), "", *advice(ranking, known.head)]
    else:
        lines = ["best: none has a result"]
    return "\n".join([*lines, *known.notes])
