"""The IDX format, and what is not in it."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mnist.core.errors import InputError
from mnist.data import idx
from mnist.data.store import Bytes
from tests import conftest, memory

NUMBERS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "numbers",
    [NUMBERS, NUMBERS[:0], NUMBERS[:1], NUMBERS[0, 0], NUMBERS[0, 0, :0]],
    ids=["three", "no image", "one image", "labels", "no label"],
)
def test_the_numbers_of_an_archive_come_back(tmp_path: Path, numbers: Bytes) -> None:
    (tmp_path / "archive.gz").write_bytes(gzip.compress(conftest.idx(numbers)))
    idx.unpack(tmp_path / "archive.gz", tmp_path / "unpacked")

    read = idx.read(tmp_path / "unpacked", name="archive.gz", rank=numbers.ndim)
    (tmp_path / "unpacked").unlink()

    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, numbers, strict=True)
    assert not read.flags.writeable


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "b'' and sizes (0, 0, 0) before -16 bytes"),
        (b"\0\0\x08", r"b'\x00\x00\x08' and sizes (0, 0, 0) before -13 bytes"),
        (b"<html>" * 9, "b'<htm' and sizes "),
        (b"\0\0\x0c\x03" + bytes(12), r"b'\x00\x00\x0c\x03' and sizes (0, 0, 0) before 0 bytes"),
        (conftest.idx(NUMBERS[0]), r"b'\x00\x00\x08\x02' and sizes (3, 4, "),
        (conftest.idx(NUMBERS)[:-1], r"b'\x00\x00\x08\x03' and sizes (2, 3, 4) before 23 bytes"),
        (conftest.idx(NUMBERS) + b"!", r"b'\x00\x00\x08\x03' and sizes (2, 3, 4) before 25 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, r"b'\x00\x00\x08\x03' and sizes (4294967295, "),
    ],
    ids=["nothing", "three bytes", "a page", "int32", "rank", "short", "long", "absurd"],
)
def test_what_is_not_idx_is_told_in_one_line(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(InputError) as caught:
        idx.read(tmp_path / "file", name="images", rank=3)

    assert str(caught.value).startswith(f"images: found {found}")
    assert "expected IDX, uint8, rank 3: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_archive_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Of 300 MB unpacked, a chunk at a time is."""
    num_images, chunk = 400_000, bytes(784 * 10_000)
    with gzip.open(tmp_path / "archive.gz", "wb", compresslevel=1) as packed:
        packed.write(b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (num_images, 28, 28)))
        for _ in range(num_images // 10_000):
            packed.write(chunk)
    code = """
        idx.unpack(path, path.with_suffix(""))
        images = idx.read(path.with_suffix(""), name="images", rank=3)
        path.with_suffix("").unlink()
        train = store.Images(images_NHW=images, labels_N=np.zeros(len(images), np.uint8))
        about = store.Description(name="black", title="Black", classes=("black", "white"))
        store.write(path, train=train, test=train.take(np.arange(3)), description=about)
    """

    grown_mib, _ = memory.grown_mib(code, tmp_path / "archive.gz")

    assert (tmp_path / "archive.gz").stat().st_size > num_images * 784  # which is the data set now
    assert grown_mib < 50
