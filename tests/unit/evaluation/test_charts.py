"""Charts: what is drawn where, and that they take the colors of the page."""

import re

import pytest

from mnist.evaluation import charts
from mnist.evaluation.scores import Bin
from mnist.evaluation.statistics import Rate

BINS = [
    Bin(low=0.0, high=0.5, right=Rate(hits=0, num_images=0), confidence=None),
    Bin(low=0.5, high=1.0, right=Rate(hits=900, num_images=1000), confidence=0.8),
]


def curves(num_points: int, *, percent: bool = False) -> str:
    train, val = ([(x, y) for x in range(1, num_points + 1)] for y in (0.5, 0.6))
    return charts.curves("loss", x="step", train=train, val=val, percent=percent)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize(
    ("name", "svg"),
    [("loss", curves(1)), ("reliability", charts.reliability(BINS)), ("counts", charts.counts(BINS))],
    ids=["curves", "reliability", "counts"],
)
def test_a_chart_takes_the_colors_of_the_page_and_has_ids_of_its_own(name: str, svg: str) -> None:
    assert "#0000" not in svg
    assert "var(--" in svg
    assert "<style" not in svg
    assert all(one.startswith(f"{name}-") for one in re.findall(r'\bid="([^"]*)"', svg))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
    assert used <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_few_points_have_markers_and_many_have_none() -> None:
    few, many = (curves(count).count("<use ") for count in (charts.MAX_MARKERS, charts.MAX_MARKERS + 1))
    assert few >= 2 * charts.MAX_MARKERS
    assert many < charts.MAX_MARKERS


def test_axes_have_round_numbers() -> None:
    assert texts(curves(1))[0:2] == ["1", "step"]  # no other tick beside a lone epoch
    assert {"training images, during the epoch", "0.0"} <= set(texts(curves(3)))
    assert "100 %" in texts(curves(3, percent=True))
    assert {"1", "10", "100", "1,000"} <= set(texts(charts.counts(BINS)))
