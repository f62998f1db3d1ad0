"""The model card: purpose, scores and origin of a model, for readers of the registry.

The front matter is Hugging Face's model card metadata, so that the file can go to the Hub as it is:
https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

import re
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from mnist.core import paths
from mnist.data import page
from mnist.evaluation.summary import HIGH_CONFIDENCE, Summary
from mnist.lineage.result import Result

TEMPLATE = Path(__file__).parent / "templates/model_card.md.jinja"
README = "README.md"  # beside the model
VERSION = "VERSION"  # placeholder for the number in the registry
# Names of data sets on the Hub.
HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
# The column of a description (mlflow.store.model_registry.dbmodels.models.SqlModelVersion):
# PostgreSQL refuses a longer one.
MAX_DESCRIPTION = 5000
MORE = f"\n*The rest is in `{README}`, beside the model.*\n"


def text(summary: Summary, result: Result) -> str:
    """Return the whole card, with front matter."""
    front = yaml.safe_dump(metadata(summary, result), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(summary, result)}\n"


def metadata(summary: Summary, result: Result) -> dict[str, Any]:
    """Return the known fields of Hugging Face's model card metadata; the repository has no license."""
    about, name = summary.dataset, result.registration.model_name
    on_the_hub = HUB.get(about.name)
    values = {
        "accuracy": ("Accuracy", summary.scores.accuracy),
        "loss": ("Loss", summary.scores.loss),
        "expected_calibration_error": (
            "Expected calibration error",
            summary.scores.expected_calibration_error,
        ),
    }
    task = {"type": "image-classification", "name": "Image classification"}
    return {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", about.name, "pytorch", "mlflow", "dvc"],
        **({"datasets": [on_the_hub]} if on_the_hub else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": task,
                        "dataset": {"type": on_the_hub or about.name, "name": about.title, "split": "test"},
                        "metrics": [
                            {"type": kind, "value": value, "name": title, "verified": False}
                            for kind, (title, value) in values.items()
                        ],
                    }
                ],
            }
        ],
    }


def _body(summary: Summary, result: Result) -> str:
    return page.render(
        TEMPLATE,
        s=summary,
        result=result,
        origin=result.origin,
        source=result.origin.source,
        version=VERSION,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", result.origin.source.rerun)), default=0)),
        high_confidence=HIGH_CONFIDENCE,
        paths=paths,
        plain=plain,
        as_yaml=page.as_yaml,
        percent=page.percent,
        span=page.span,
        time=page.time,
    ).strip()


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
