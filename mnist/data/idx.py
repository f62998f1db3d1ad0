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

from mnist.core.errors import InputError
from mnist.data.store import Bytes

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
    magic, num_header_bytes = bytes([0, 0, UINT8, rank]), 4 + 4 * rank
    with path.open("rb") as stream:
        header, num_bytes = stream.read(num_header_bytes), path.stat().st_size - num_header_bytes
        shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, num_header_bytes, 4))
        if not header.startswith(magic) or num_bytes != prod(shape):
            raise InputError(
                name,
                found=f"{header[:4]!r} and sizes {shape} before {num_bytes} bytes",
                expected=f"IDX, uint8, rank {rank}: {magic!r} and the sizes of what follows",
            )
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.uint8, offset=num_header_bytes).reshape(shape)
