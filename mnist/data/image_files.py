"""Files of raw images from anywhere: IDX, plain or packed with gzip, NumPy's `.npy`, and PNG.

A file's content decides what it is, not its name. Images that are not raw pixels of this size are refused
with a reason, never converted.

Shape suffixes: N images, H rows, W columns.
"""

import gzip
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mnist.core.errors import InputError
from mnist.data.store import IMAGE_SHAPE, Bytes

RAW_PIXEL = "a raw pixel: a whole number from 0 (black) to 255 (white), not scaled"
IDX, GZIP, NPY, PNG = b"\0\0", b"\x1f\x8b", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"  # the first bytes of a file
IDX_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
PNG_HEADER = struct.Struct(">16xIIBB")  # width, height, bits and kind of a pixel
PNG_EXPECTED = f"28x28, gray, 8 bits: each {RAW_PIXEL}"
PNG_KINDS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
MAX_IMAGES = 2**20  # of a file, which is held in memory: 0.8 GB
MAX_PNG_BYTES = 2**20  # of a file; one of MNIST's images has 300
KINDS = "IDX, plain or packed with gzip, .npy, PNG, or a folder of PNG"


def find(names: Iterable[Path]) -> Iterator[Path]:
    """Yield the files; in the place of a folder, all PNG in it and in its folders, by name.

    A link to a folder is not followed, but yielded, as is a folder that has no PNG or cannot be read: `read`
    refuses them.
    """
    for name in names:
        yield from sorted(_inside(name)) or [name]


def _inside(folder: Path) -> Iterator[Path]:
    unreadable = list[OSError]()
    for place, folders, inside in os.walk(folder, onerror=unreadable.append):
        yield from (Path(place, file) for file in inside if file.lower().endswith(".png"))
        yield from (Path(place, inner) for inner in folders if Path(place, inner).is_symlink())
    yield from (Path(error.filename) for error in unreadable)


def read(path: Path) -> Bytes:
    """Read the images of a file, uint8 (N, 28, 28), N at least 1.

    Raises:
        InputError: it is missing, broken, or no file of raw images.
    """
    try:
        return _read(path)
    except InputError:
        raise
    except Exception as error:  # each reader has its own
        reason = f"a broken file ({' '.join(str(error).split()) or type(error).__name__})"
        found = getattr(error, "strerror", None) or reason
        raise InputError(str(path), found=found, expected="a file of images") from error


def _read(path: Path) -> Bytes:
    if not path.is_file():
        raise _not_a_file(path)
    with path.open("rb") as stream:
        start = stream.read(PNG_HEADER.size)
    if start.startswith(PNG):
        return _png(path, start)
    if start.startswith(NPY):
        # Not read before its form is known. Pickled objects cannot be mapped.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        _check(path, str(mapped.dtype), mapped.shape)
        return np.array(mapped)
    if start.startswith((IDX, GZIP)):
        return _idx(path, is_packed=start.startswith(GZIP))
    raise InputError(str(path), found="another kind of file", expected=KINDS)


def _not_a_file(path: Path) -> InputError:
    if path.is_dir():
        os.scandir(path).close()  # raises where it cannot be read
        found = "a link to a folder" if path.is_symlink() else "a folder without PNG files"
    else:
        found = "no regular file" if path.exists() else "no such file"
    return InputError(str(path), found=found, expected=KINDS)


def _check(path: Path, kind: str, shape: tuple[int, ...]) -> None:
    """Check the type and the shape of a file's numbers before they are read."""
    if kind != "uint8" or shape[1:] != IMAGE_SHAPE:
        expected = f"uint8 (N, 28, 28), each {RAW_PIXEL}"
        raise InputError(str(path), found=f"{kind} {shape}", expected=expected)
    if not 1 <= shape[0] <= MAX_IMAGES:
        raise InputError(str(path), found=f"{shape[0]:,} images", expected=f"1 to {MAX_IMAGES:,} in a file")


def _idx(path: Path, *, is_packed: bool) -> Bytes:
    """Read IDX (http://yann.lecun.com/exdb/mnist/): a type, a rank, the sizes, and the numbers."""
    with gzip.open(path) if is_packed else path.open("rb") as stream:
        start, kind, rank = struct.unpack(">2sBB", stream.read(4))
        if start != IDX or kind not in IDX_TYPES:
            raise InputError(str(path), found="another kind of file", expected=KINDS)
        shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
        _check(path, IDX_TYPES[kind], shape)
        num_bytes = int(np.prod(shape))
        content = stream.read(num_bytes + 1)
    if len(content) != num_bytes:
        found = "more bytes" if len(content) > num_bytes else f"{len(content):,} bytes"
        raise InputError(str(path), found=found, expected=f"{num_bytes:,}, of {shape[0]:,} images")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _png(path: Path, start: bytes) -> Bytes:
    """Read a PNG; its size is checked before it is decoded, and its checksums before it is believed."""
    from PIL import Image

    width, height, bits, kind = PNG_HEADER.unpack(start)
    if (height, width) != IMAGE_SHAPE or (bits, kind) != (8, 0):
        found = f"{width}x{height}, {PNG_KINDS.get(kind, 'unknown')}, {bits} bits"
        raise InputError(str(path), found=found, expected=PNG_EXPECTED)
    if path.stat().st_size > MAX_PNG_BYTES:
        raise InputError(str(path), found=f"more than {MAX_PNG_BYTES:,} bytes", expected="one image")
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()
    with Image.open(path, formats=["PNG"]) as image:
        if "transparency" in image.info:
            raise InputError(str(path), found="a transparent gray", expected=PNG_EXPECTED)
        return np.asarray(image)[np.newaxis]
