"""Files of raw images: each format is read to the pixel; anything else is one line with the reason."""

import gzip
import io
import os
import pickle
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist.core.errors import InputError
from mnist.data import image_files
from mnist.data.store import Bytes
from tests.conftest import digits, idx

IMAGES = digits(3, seed=4).images_NHW


def png(image: Any, mode: str = "") -> bytes:
    stream = io.BytesIO()
    drawn = Image.fromarray(image)
    (drawn.convert(mode) if mode else drawn).save(stream, "png")
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


PNG = png(IMAGES[0])
START = PNG[: PNG.index(b"IDAT") - 4]
NPY_OF_MORE = npy(IMAGES).replace(b"(3, 28, 28), }      ", b"(9999999, 28, 28), }")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (idx(IMAGES), IMAGES),
        (gzip.compress(idx(IMAGES)), IMAGES),
        (npy(IMAGES), IMAGES),
        (npy(np.asfortranarray(IMAGES)), IMAGES),
        (PNG, IMAGES[:1]),
    ],
    ids=["IDX", "gzip", "npy", "npy by column", "PNG"],
)
def test_each_format_is_read_whatever_the_name(content: bytes, expected: Bytes, tmp_path: Path) -> None:
    file = tmp_path / "images.txt"
    file.write_bytes(content)
    images_NHW = image_files.read(file)
    assert images_NHW.dtype == np.uint8
    np.testing.assert_array_equal(images_NHW, expected)


REFUSED = {
    "empty": b"",
    "text": b"hello, this is no file of images",
    "pickle": pickle.dumps(IMAGES),
    "IDX: labels": idx(IMAGES[:, 0, 0]),
    "IDX: one image": idx(IMAGES[0]),
    "IDX: float": idx(IMAGES).replace(b"\x08\x03", b"\x0d\x03", 1),
    "IDX: 27 rows": idx(IMAGES[:, 1:]),
    "IDX: a byte less": idx(IMAGES)[:-1],
    "IDX: a byte more": idx(IMAGES) + b"0",
    "IDX: half a header": idx(IMAGES)[:9],
    "IDX: unknown type": bytes(20),
    "IDX: 2^32 images": bytes([0, 0, 8, 3, 255, 255, 255, 255, 0, 0, 0, 28, 0, 0, 0, 28]),
    "gzip: truncated": gzip.compress(idx(IMAGES))[:-20],
    "gzip: of npy": gzip.compress(npy(IMAGES)),
    "gzip: bomb": gzip.compress(idx(IMAGES) + bytes(10**7)),
    "npy: objects": npy(np.array([{}, "a"], object)),
    "npy: scaled": npy(IMAGES / 255),
    "npy: int64": npy(IMAGES.astype(np.int64)),
    "npy: one image": npy(IMAGES[0]),
    "npy: no image": npy(IMAGES[:0]),
    "npy: truncated": npy(IMAGES)[:-1],
    "npy: header alone": npy(IMAGES)[:20],
    "npy: more images than bytes": NPY_OF_MORE,
    "PNG: 27 rows": png(IMAGES[0, 1:]),
    "PNG: 16 bits": png(IMAGES[0].astype(np.uint16)),
    "PNG: 1 bit": png(IMAGES[0], "1"),
    "PNG: RGB": png(IMAGES[0], "RGB"),
    "PNG: palette": png(IMAGES[0], "P"),
    "PNG: alpha": png(IMAGES[0], "LA"),
    "PNG: a transparent gray": START + chunk(b"tRNS", b"\0\0") + PNG[len(START) :],
    "PNG: signature alone": PNG[:8],
    "PNG: truncated": PNG[:-20],
    "PNG: wrong checksum": PNG.replace(b"IDAT", b"IDAU"),
    "PNG: bomb": START.replace(struct.pack(">II", 28, 28), struct.pack(">II", 10**5, 10**5))
    + chunk(b"IDAT", zlib.compress(bytes(10**6))),
    "PNG: text bomb": START + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))) + PNG[len(START) :],
    "PNG: 2 MiB": PNG + bytes(2**21),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_what_holds_no_raw_images_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "images.png"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        image_files.read(file)
    assert caught.value.where == str(file)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_byte_of_a_png_never_changes_a_pixel(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    for place in range(len(PNG)):
        file.write_bytes(PNG[:place] + bytes([PNG[place] ^ 4]) + PNG[place + 1 :])
        try:
            np.testing.assert_array_equal(image_files.read(file)[0], IMAGES[0])
        except InputError:
            continue


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    files = [*tmp_path.iterdir(), tmp_path / "missing.png"]
    for file in files:
        with pytest.raises(InputError) as caught:
            image_files.read(file)
        assert caught.value.found == ("no regular file" if file.stem in ("fifo", "zero") else "no such file")


def test_a_folder_stands_for_its_png_in_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    for name in ("b.png", "a.PNG", "7/c.png", "labels.csv"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "d.png").symlink_to("b.png")
    found = image_files.find([tmp_path, tmp_path / "labels.csv"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["7/c.png", "a.PNG", "b.png", "d.png", "labels.csv"]


@pytest.mark.parametrize("kind", ["empty", "link", "closed"])
def test_a_folder_in_which_nothing_is_found_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if kind == "link":
        (folder / "self").symlink_to(folder)
    if kind == "closed":
        folder.chmod(0)
    (found,) = image_files.find([folder])
    with pytest.raises(InputError) as caught:
        image_files.read(found)
    assert caught.value.where.startswith(str(folder))
    assert ("link" in caught.value.found) == (kind == "link")
    folder.chmod(stat.S_IRWXU)
