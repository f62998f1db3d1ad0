"""The IDX format, in which MNIST is published.

Two zero bytes, the type of the numbers, the rank, each size as four bytes (the first is the
slowest), the numbers, all of it big-endian: http://yann.lecun.com/exdb/mnist/
"""

import gzip
import mmap
import shutil
import zlib
from math import prod
from pathlib import Path

import numpy as np

from mnist.dataset import Bytes
from mnist.errors import InputError

UINT8 = 8  # the type byte
CHUNK_BYTES = 2**20  # unpacked at a time


def unpack(archive: Path, target: Path) -> None:
    """Unpack a gzip archive; memory does not grow with it.

    Raises:
        InputError: it is not a whole one.
    """
    try:
        with gzip.open(archive) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, CHUNK_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(archive.name, found=f"{error}", expected="a gzip archive") from None


def read(path: Path, *, name: str, rank: int) -> Bytes:
    """Map a file of uint8 numbers into memory, read-only; of this rank, and of the file's shape.

    Args:
        path: the unpacked file, which may be deleted while the numbers are in use.
        name: for messages.
        rank: what it must be.

    Raises:
        InputError: it is not IDX, or holds other numbers, of another rank, or too few or many.
    """
    expected = f"IDX, {rank} dimension{'s' * (rank > 1)} of uint8"
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic != bytes([0, 0, UINT8, rank]):
            found = f"{magic[3]} of type {magic[2]}" if magic[:2] == b"\0\0" and magic[3:] else f"{magic!r}"
            raise InputError(name, found=found, expected=f"{expected} (type {UINT8})")
        shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(rank))
        start, num_bytes = stream.tell(), path.stat().st_size
        if num_bytes - start != prod(shape):
            raise InputError(
                name, found=f"{num_bytes - start} bytes for the shape {shape}", expected=f"{prod(shape)}"
            )
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
