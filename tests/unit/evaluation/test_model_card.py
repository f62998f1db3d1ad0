"""The model card: Hugging Face's metadata, the numbers of the files, and what of it MLflow can show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from mnist.core import paths
from mnist.evaluation import model_card, scores
from tests.made_result import SOURCE, Made

EVIL = "<img src=x>|`*_[a](b)"


def text(made: Made, **params: Any) -> str:
    return model_card.text(made.summary(), made.result(**params))


def front_matter(text: str) -> dict[str, Any]:
    opening, front, _ = text.split("---\n", 2)
    assert opening == ""
    values = yaml.safe_load(front)
    assert isinstance(values, dict)
    return values


def html(markdown: str) -> str:
    """As a reader of Markdown with tables shows it, MLflow and the Hub among them."""
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def test_the_front_matter_has_the_fields_of_the_hub(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    result_scores = scores.read(tmp_path / paths.TEST_METRICS)
    values = front_matter(text(made))
    assert values["library_name"] == "pytorch"
    assert values["pipeline_tag"] == "image-classification"
    assert {"image-classification", "mnist", "pytorch"} <= set(values["tags"])
    assert values["datasets"] == ["ylecun/mnist"]
    assert values["metrics"] == ["accuracy"]
    assert "license" not in values  # the repository has none
    (index,) = values["model-index"]
    assert index["name"] == "mnist-simplecnn"
    (result,) = index["results"]
    assert result["task"] == {"type": "image-classification", "name": "Image classification"}
    assert result["dataset"] == {"type": "ylecun/mnist", "name": "MNIST", "split": "test"}
    metrics = {one["type"]: one for one in result["metrics"]}
    assert metrics["accuracy"] == {
        "type": "accuracy",
        "value": result_scores.accuracy,
        "name": "Accuracy",
        "verified": False,
    }
    assert metrics["loss"]["value"] == result_scores.loss
    assert metrics["expected_calibration_error"]["value"] == result_scores.expected_calibration_error


def test_a_data_set_that_is_not_on_the_hub_has_its_own_name_there(tmp_path: Path) -> None:
    values = front_matter(text(Made(tmp_path, name="birds", title="Birds: a set")))
    assert "datasets" not in values
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"] == {"type": "birds", "name": "Birds: a set", "split": "test"}


def test_the_body_holds_the_numbers_of_the_files(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    said, result_scores = made.summary(), scores.read(tmp_path / paths.TEST_METRICS)
    body = text(made).replace("\u00a0", " ")
    low, high = said.accuracy.interval or (0, 0)
    assert f"{100 * result_scores.accuracy:.2f} % of 300 test images" in body
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in body
    assert f"| {result_scores.loss:.4f} |" in body
    assert "6,422 parameters" in body
    assert f"wrong {result_scores.num_wrong} times, {said.num_confident_mistakes} of them" in body
    for one in said.classes:
        assert f"\n| {one.name} | 30 | {100 * (one.recall.share or 0):.2f} % |" in body
    for key in ("f" * 64, "d" * 64, "a" * 64, "c" * 40, "lr 0.01", "dvc repro"):
        assert key in body


def test_the_description_is_the_card_without_front_matter_and_title(tmp_path: Path) -> None:
    whole = text(Made(tmp_path))
    said = model_card.description(whole)
    assert whole.endswith(said)
    assert not said.startswith(("---", "#"))
    assert said.partition("\u00a0")[0].replace(".", "").isdecimal()  # a list shows how it begins


def test_a_description_that_is_too_long_for_mlflow_ends_after_a_section(tmp_path: Path) -> None:
    made = Made(tmp_path, classes=tuple(f"{number}" * 250 for number in range(10)))
    said = model_card.description(text(made))
    assert len(said) <= model_card.MAX_DESCRIPTION < len(text(made))
    assert said.endswith("*The rest is in `README.md`, beside the model.*\n")
    assert "## Evaluation" in said
    assert "## By class" not in said


def test_the_number_in_the_registry_is_filled_in(tmp_path: Path) -> None:
    whole = text(Made(tmp_path))
    assert '"models:/mnist-simplecnn/VERSION"' in whole
    assert '"models:/mnist-simplecnn/12"' in model_card.of_version(whole, "mnist-simplecnn", "12")


def test_what_was_named_by_others_is_no_markup(tmp_path: Path) -> None:
    made = Made(tmp_path, title=EVIL)
    source = replace(SOURCE, rerun="dvc exp run -S 'a=<b>\n```\n# no'")
    body = model_card.description(text(made, source=source, model=EVIL, lr=EVIL))
    shown = html(body)
    assert "<img" not in shown
    assert "<a " not in shown
    assert "<em>" not in shown
    assert "<h1>" not in shown
    assert "a=&lt;b&gt;" in shown  # once, not twice escaped
