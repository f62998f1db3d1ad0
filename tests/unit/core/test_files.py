"""Files that are whole or not there, whatever happens while they are written."""

import errno
import math
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mnist.core import files
from mnist.core.errors import InputError

ROOT = Path(__file__).parents[3]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- temporary


def test_a_temporary_folder_is_removed_by_the_next_one_if_its_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{files.TEMPORARY}left"
    left.mkdir()
    with files.temporary("runs") as running:
        for folder in (left, running):
            os.utime(folder, (0, 0))
        assert list(files.left_behind()) == [left]
        with files.temporary("next"):
            assert not left.exists()
            assert running.exists()
    assert listing(tmp_path) == []


# ---- replacing


def test_a_block_that_succeeds_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    with files.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert (part.parent, part.suffix) == (path.parent, ".json")
        assert subprocess.run(["git", "check-ignore", "-q", part.name], cwd=ROOT, check=False).returncode == 0

    assert path.read_text() == "new"
    assert listing(tmp_path) == ["report.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write_half() -> None:
        with files.replacing(path) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()

    assert path.read_text() == "old"
    assert listing(tmp_path) == ["report.json"]


def test_what_a_killed_writer_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    for name, age in (("old.json", files.ABANDONED_SECONDS + 60), ("new.json", 60), ("old.csv", 10**6)):
        part = tmp_path / f"{files.PART}{name.replace('.', '.report.')}"
        part.touch()
        os.utime(part, times=(time.time() - age,) * 2)

    files.write_json(tmp_path / "report.json", {})

    assert listing(tmp_path) == [".part.new.report.json", ".part.old.report.csv", "report.json"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 10,000 bytes, which is an error of the system like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "write",
    [lambda part: part.write_bytes(bytes(20_000)), lambda part: save_file({"a": np.zeros(20_000)}, part)],
    ids=["bytes", "safetensors"],
)
def test_a_full_disk_is_told_with_the_file_which_stays(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    with pytest.raises(InputError) as caught, files.replacing(path) as part:
        write(part)

    assert (caught.value.where, caught.value.found) == (str(path), "File too large")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["report.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_told_and_another_error_kept(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError) as caught, files.writing(tmp_path), files.writing(tmp_path / "inner"):
        raise OSError(number, os.strerror(number))
    assert caught.value.where == f"{tmp_path}/inner"
    with pytest.raises(PermissionError), files.writing(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()

    files.write_text(tmp_path / "ours", "text")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_into_a_cache_is_replaced_and_the_cache_left_alone(tmp_path: Path, link: str) -> None:
    """DVC links outs to its cache where it is told to; writing through the link would spoil the cache."""
    cached, out = tmp_path / "cached", tmp_path / "out"
    cached.write_text("old")
    getattr(out, link)(cached)

    files.write_text(out, "new")

    assert (cached.read_text(), out.read_text()) == ("old", "new")


# ---- text and JSON


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text("old")

    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"loss": [math.nan]})

    assert path.read_text() == "old"
    assert listing(tmp_path) == ["value.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found no JSON (Expecting value"),
        (b"\xff{}", "found no JSON ('utf-8' codec"),
        (b"[" * 100_000, "found no JSON (maximum recursion depth"),
    ],
    ids=["empty", "not UTF-8", "deep"],
)
def test_broken_json_is_told_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)

    with pytest.raises(InputError) as caught:
        files.read_json(path)

    assert str(caught.value).startswith(f"{path}: {said}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("read", [files.sha256, files.read_json], ids=["sha256", "read_json"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path)

    assert (caught.value.where, caught.value.found) == (str(tmp_path), "a folder")


@pytest.mark.parametrize("read", [files.sha256, files.read_json], ids=["sha256", "read_json"])
def test_a_missing_file_is_told_with_what_makes_it(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "file")

    assert str(caught.value) == (
        f"{tmp_path}/file: found no such file, expected the output of an earlier stage: run `dvc repro`"
    )
