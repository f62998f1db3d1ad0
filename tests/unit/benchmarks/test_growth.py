"""What the bench of growth makes, samples, computes and shows; no times are judged."""

import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth, harness
from benchmarks.growth import Sample, Size
from mnist.core.errors import InputError
from mnist.data import idx
from mnist.data.store import Bytes
from tests import checkout, conftest
from tests.conftest import SmallData, digits

ROOT = Path(__file__).parents[3]
MIB = 2**20


# ---- the data


def packed(folder: Path, numbers: Bytes, factor: float) -> Bytes:
    """What `pack` makes of these numbers."""
    (folder / "source").write_bytes(conftest.idx(numbers))
    num_items = growth.pack(folder / "source", folder / "target.gz", factor)
    idx.unpack(folder / "target.gz", folder / "target")
    made = idx.read(folder / "target", name="target", rank=numbers.ndim)
    (folder / "target").unlink()  # a file that is written over takes the numbers with it
    assert len(made) == num_items
    return made


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_each_copy_is_moved_by_other_pixels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int
) -> None:
    monkeypatch.setattr(growth, "CHUNK", chunk)
    images = digits(30, seed=0)

    images_NHW = packed(tmp_path, images.images_NHW, 5)
    labels_N = packed(tmp_path, images.labels_N, 5)

    assert len({image_HW.tobytes() for image_HW in images_NHW}) == 150
    np.testing.assert_array_equal(images_NHW[:30], images.images_NHW)
    for at, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        row, column = growth.MOVES[at // 30]
        original_HW = images.images_NHW[at % 30]
        assert label == images.labels_N[at % 30]
        for (y, x), pixel in np.ndenumerate(original_HW[::9, ::9]):
            assert image_HW[(9 * y + row) % 28, (9 * x + column) % 28] == pixel
        assert sorted(image_HW.flat) == sorted(original_HW.flat)


def test_there_are_moves_enough_and_none_is_there_twice() -> None:
    assert len(set(growth.MOVES)) == len(growth.MOVES) >= max(growth.FACTORS)
    assert growth.MOVES[0] == (0, 0)


def test_a_small_set_is_the_first_images(tmp_path: Path) -> None:
    images = digits(40, seed=0)

    np.testing.assert_array_equal(packed(tmp_path, images.images_NHW, 1 / 20), images.images_NHW[:2])
    np.testing.assert_array_equal(packed(tmp_path, images.labels_N, 1 / 1000), images.labels_N[:1])


def test_the_same_archive_is_made_again(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        packed(tmp_path / name, digits(10, seed=0).images_NHW, 3)
        made.append((tmp_path / name / "target.gz").read_bytes())

    assert made[0] == made[1]
    assert made[0][4:8] == bytes(4)  # no time stamp
    assert len(gzip.decompress(made[0])) == 16 + 30 * 784


# ---- the samples


@pytest.fixture
def here(tmp_path: Path) -> harness.Checkout:
    """A folder with stages of its own, in which `watch` runs."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    return harness.Checkout(folder=tmp_path, environment={**os.environ, "PYTHONPATH": str(ROOT)})


def watch(place: harness.Checkout, code: str) -> harness.Outcome:
    (place.folder / "stages" / "made.py").write_text(code)
    return place.python("-c", "from benchmarks import growth; growth.watch()", "made")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")
def test_pages_of_a_file_are_not_memory_of_its_own(here: harness.Checkout) -> None:
    with (here.folder / "file").open("wb") as stream:
        stream.truncate(300 * MIB)
    code = (
        "import mmap, time\n"
        "file = open('file', 'rb')\n"
        "content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "looked_at = sum(content[at] for at in range(0, len(content), 4096))\n"
        "own = b'x' * 100 * 2**20\n"
        "time.sleep(0.3)\n"
    )

    numbers = watch(here, code).numbers

    assert set(numbers) >= {"seconds", "cpu_seconds", "anonymous_bytes", "resident_bytes"}
    assert 100 * MIB < numbers["anonymous_bytes"] < 150 * MIB
    assert 400 * MIB < numbers["resident_bytes"] < 500 * MIB
    assert numbers["seconds"] > 0.3
    assert numbers["cpu_seconds"] > 0


def test_a_stage_that_fails_is_told(here: harness.Checkout) -> None:
    with pytest.raises(harness.FailedError, match="made ended with status 3") as caught:
        watch(here, "import sys; print('out of luck', flush=True); sys.exit(3)")

    assert "out of luck" in caught.value.last_lines


# ---- the numbers


def size(num_images: int, *seconds: float, bytes_per_image: int = 0) -> Size:
    """A data set whose only stage took so long, each round; half a second of it it waited."""
    samples = [
        Sample(
            seconds=each + 0.5,
            cpu_seconds=each,
            anonymous_bytes=2**30 + bytes_per_image * num_images,
            resident_bytes=2**31,
        )
        for each in seconds
    ]
    return Size(num_images=num_images, samples={"stats": samples})


def summed(sizes: Mapping[float, Size]) -> dict[str, Any]:
    return {"stages": growth.summary(sizes)}


LINEAR = {
    0.0: size(0, 2.0, 2.0, 2.0),
    1: size(1_000_000, 3.0, 2.5, 4.0),
    10: size(10_000_000, 12.0, 13.0, 11.0, bytes_per_image=100),
    50: size(50_000_000, 52.0, 50.0, 80.0),
}


def test_the_rows_are_the_time_and_the_memory_of_an_image() -> None:
    table = growth.tables(summed(LINEAR)).splitlines()

    small, medium, large = table[2:]
    assert small == (
        "| `stats` | 1,000,000 | 3.50 s | 3.00 to 4.50 s | 1.00 us | 1.00 x | yes"
        " | 1.00 GiB | 2.00 GiB | 0 B |"
    )
    assert medium.endswith("| 1.93 GiB | 2.00 GiB | 100 B |")
    assert large.startswith("| `stats` | 50,000,000 | 52.50 s | 50.50 to 80.50 s | 1.00 us | 1.00 x | yes |")
    assert all(line.count("|") == len(growth.COLUMNS) + 1 for line in table)


def test_the_result_is_plain_json() -> None:
    result = summed(LINEAR)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["stages"]["stats"]["start_up_seconds"] == 2.5
    assert list(result["stages"]["stats"]["factors"]) == ["1", "10", "50"]


def holds(*sizes: Size) -> list[bool]:
    result = growth.summary(dict(zip((0.0, 1, 10, 50), sizes, strict=False)))
    return [row["holds"] for row in result["stats"]["factors"].values()]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([2, 3, 12, 52], [True, True, True]),
        ([2, 3, 14, 74], [True, True, True]),  # with a logarithm
        ([2, 3, 12, 82], [True, True, False]),
        ([2, 3, 102, 2502], [True, False, False]),  # squared
        ([2, 2, 2, 2], [True, True, True]),  # too little to be measured
    ],
    ids=["linear", "n log n", "at the end", "squared", "nothing"],
)
def test_more_than_linear_growth_is_told(seconds: Sequence[float], expected: list[bool]) -> None:
    counts = (0, 1_000_000, 10_000_000, 50_000_000)

    assert holds(*map(size, counts, seconds)) == expected


def test_what_the_spread_of_the_start_explains_is_no_growth() -> None:
    sizes = [size(1_000_000, 2.5), size(10_000_000, 12.0)]

    assert holds(size(0, 2.0, 2.0, 2.0), *sizes) == [True, False]
    assert holds(size(0, 1.5, 2.0, 2.5), *sizes) == [True, True]


# ---- the whole


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch, here: harness.Checkout) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    bench = harness.Bench(source=here, data=here.folder, commit="")

    with pytest.raises(InputError, match=r"^this system: found darwin, expected linux"):
        growth.measure_all(bench, num_rounds=1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")
def test_the_real_stages_are_measured(
    tmp_path: Path,
    small_data: SmallData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("DVC_ROOT", "MNIST_MIRROR", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    clone = checkout.clone(tmp_path / "checkout", small_data)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(growth, "START_UP", 1 / 2)  # in which all digits are
    monkeypatch.chdir(clone.folder)

    with harness.prepared() as bench:
        result = growth.measure_all(bench, num_rounds=1, factors=[3], stages=["stats"])

    assert list(result["stages"]) == ["stats"]
    (row,) = result["stages"]["stats"]["factors"].values()
    assert row["num_images"] == 4500
    assert 0 < row["anonymous_gib"] < row["resident_gib"] < 1
    assert growth.tables(result).count("| `stats` | 4,500 |") == 1
    captured = capsys.readouterr()
    assert captured.err.count("validate") == 3  # warming up, the small set, and the large one
    assert not list((tmp_path / "tmp").iterdir())
    assert clone.run("git", "status", "--porcelain").stdout == ""
