"""The pages about a result: a report to send to a colleague, and a model card for readers of the registry.

The report, `metrics/report.html`, stands alone. It names commit and time, so it is no out of DVC: the same
result gives the same page at the same time only. The front matter of the card is Hugging Face's model card
metadata, so that the file can go to the Hub as it is:
https://github.com/huggingface/hub-docs/blob/main/modelcard.md

Shape suffixes: M of the test images.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from mnist.core import config, files, paths
from mnist.data import validation
from mnist.evaluation import results, scores
from mnist.evaluation.results import HIGH_CONFIDENCE, Summary
from mnist.evaluation.statistics import Interval
from mnist.lineage.result import Result, training_info

TEMPLATES = Path(__file__).parent / "templates"

# The report.
NUM_IMAGES = 10  # in each gallery
NUM_MIX_UPS = 10  # that are listed
MAX_POINTS = 200  # of a curve, and rows of its table
MAX_PATCH = 50_000  # characters that are shown

# The card.
README = "README.md"  # beside the model
VERSION = "VERSION"  # placeholder for the number in the registry
# Names of data sets on the Hub.
HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
# The column of a description (mlflow.store.model_registry.dbmodels.models.SqlModelVersion):
# PostgreSQL refuses a longer one.
MAX_DESCRIPTION = 5000
MORE = f"\n*The rest is in `{README}`, beside the model.*\n"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The pages about a result: its numbers, the report (HTML) and the model card (Markdown)."""

    summary: Summary
    report: str
    card: str


def render(result: Result, *, folder: Path = Path()) -> Pages:
    """Describe a result whose files lie in a checkout.

    Raises:
        InputError: a file is missing, or the files are not of one result.
    """
    summary = results.load_summary(folder)
    return Pages(summary=summary, report=report(summary, result, folder=folder), card=card(summary, result))


def report(summary: Summary, result: Result, *, folder: Path) -> str:
    """Return the report in HTML.

    Args:
        summary: the numbers of the result.
        result: what it came from.
        folder: of its files.

    Raises:
        InputError: the figures of filters or feature maps are missing.
    """
    from mnist.evaluation import charts  # matplotlib: 0.4 s

    steps, epochs = thinned(summary.steps), thinned(summary.epochs)
    labels_N, log_probs_NK = summary.test.labels_N, summary.log_probs_NK
    patch = result.origin.source.patch
    return _render(
        "report.html.jinja",
        summary,
        result,
        changed=re.findall(r'^diff --git "?a/.* "?b/(.*?)"?$', patch, re.MULTILINE),
        patch=_patch(patch),
        training=training_info(result.weights_sha256),
        store=paths.shown(paths.store_uri()),
        steps=steps,
        epochs=epochs,
        size=(charts.WIDTH, charts.HEIGHT),
        loss_chart=charts.curves(
            "loss",
            x="step",
            train=[(row.step, row.loss) for row in steps],
            val=[(row.step, row.val_loss) for row in epochs],
            percent=False,
        ),
        accuracy_chart=charts.curves(
            "accuracy",
            x="epoch",
            train=[(row.epoch, row.train_accuracy) for row in epochs],
            val=[(row.epoch, row.val_accuracy) for row in epochs],
            percent=True,
        ),
        reliability_chart=charts.reliability(summary.bins),
        counts_chart=charts.counts(summary.bins),
        mix_ups=summary.mix_ups,
        num_mix_ups=NUM_MIX_UPS,
        right=_examples(summary, np.flatnonzero(log_probs_NK.argmax(1) == labels_N)),
        wrong=_examples(summary, scores.confident_mistakes(log_probs_NK, labels_N)),
        unsure=_examples(summary, np.argsort(scores.confidence(log_probs_NK), kind="stable")),
        filters=_embedded(folder / paths.FILTERS),
        feature_maps=_embedded(folder / paths.FEATURE_MAPS),
    )


def _render(template: str, summary: Summary, result: Result, **values: Any) -> str:
    return validation.render(
        TEMPLATES / template,
        s=summary,
        result=result,
        origin=result.origin,
        source=result.origin.source,
        paths=paths,
        high_confidence=HIGH_CONFIDENCE,
        as_typed=config.as_typed,
        percent=percent,
        span=span,
        time=time,
        **values,
    )


def percent(share: float | None, decimals: int = 2) -> str:
    """Return a share in percent; "none" for None."""
    return "none" if share is None else f"{100 * share:.{decimals}f}\u00a0%"


def span(interval: Interval | None, decimals: int = 2) -> str:
    """Return an interval of shares in percent; "none" for None."""
    if interval is None:
        return "none"
    low, high = (f"{100 * limit:.{decimals}f}" for limit in interval)
    return f"{low} to {high}\u00a0%"


def time(time_ms: int) -> str:
    """Return a time, in milliseconds since 1970, as text in UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _patch(patch: str) -> str | None:
    """Return a patch as the page shows it; None if it is too long, binary, or may hold a secret."""
    is_readable = len(patch) <= MAX_PATCH and "\nGIT binary patch\n" not in patch
    # A password or a token in a URL; `Source.rerun` does not show them either.
    may_be_secret = re.search(r"://.*[@?#]", patch)
    # Bytes of a file that are not UTF-8 are lone surrogates here, which a page cannot hold.
    return patch.encode(errors="replace").decode() if is_readable and not may_be_secret else None


def thinned(rows: Sequence[T]) -> Sequence[T]:
    """Return at most `MAX_POINTS` rows at equal distances, the last row among them."""
    every = -(-len(rows) // MAX_POINTS) or 1
    return rows[(len(rows) - 1) % every :: every]


def _examples(summary: Summary, index_M: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the first of the images at these positions, with the two likeliest classes of each."""
    names = summary.dataset.classes
    examples = []
    for index in index_M[:NUM_IMAGES].tolist():
        label = int(summary.test.labels_N[index])
        probs_K = np.exp(summary.log_probs_NK[index].astype(np.float64))
        likeliest = np.argsort(-probs_K, kind="stable")[:2].tolist()
        examples.append(
            {
                "index": index,
                "uri": validation.picture(summary.test.images_NHW[index]),
                "label": names[label],
                "likeliest": [(names[number], float(probs_K[number])) for number in likeliest],
                "is_right": label == likeliest[0],
            }
        )
    return examples


def _embedded(png: Path) -> str:
    """Return a figure as a data URI."""
    with files.reading(png):
        return validation.data_uri(png.read_bytes())


def card(summary: Summary, result: Result) -> str:
    """Return the whole model card, with front matter."""
    fences = re.findall("`+", result.origin.source.rerun)
    text = _render(
        "model_card.md.jinja",
        summary,
        result,
        hub=HUB.get(summary.dataset.name),
        version=VERSION,
        fence="`" * max(3, 1 + max(map(len, fences), default=0)),
        plain=plain,
    )
    return text.strip() + "\n"


def plain(words: object) -> Markup:
    """Escape words for Markdown and HTML, in one line."""
    return Markup(re.sub(r"([\\`*_\[\]|#~])", r"\\\1", str(escape(" ".join(str(words).split())))))  # noqa: S704


def of_version(card: str, name: str, version: str) -> str:
    """Return the card with the number that the model has in the registry."""
    return card.replace(f"models:/{name}/{VERSION}", f"models:/{name}/{version}")


def description(card: str) -> str:
    """Return the description of a version in MLflow: as many sections of the card's body as fit."""
    # Neither front matter nor title: a list of versions shows how the description begins.
    body = re.sub(r"\A---\n.*?\n---\n\s*(# [^\n]*\n\s*)?", "", card, flags=re.DOTALL)
    if len(body) <= MAX_DESCRIPTION:
        return body
    kept, room = "", MAX_DESCRIPTION - len(MORE)
    for section in re.split(r"(?m)^(?=## )", body):
        if len(kept) + len(section) > room:
            break
        kept += section
    return (kept or body[:room]).rstrip() + "\n" + MORE
