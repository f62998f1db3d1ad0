"""The archives of a data set: a cache, mirrors in order, and torchvision to fetch and read them.

torchvision's `download_url` has no time-out of its own, checks MD5 alone and falls back from https to http:
here it gets a time-out, and SHA-256 decides where it is known.

Shape suffixes: N images, H rows, W columns.
"""

import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data.catalog import Archive, Checksums, DataSet
from mnist.data.store import IMAGE_SHAPE, Bytes, Images

TIMEOUT_SECONDS = 10.0  # without a byte: TCP repeats a lost request for a connection after 1, 3 and 7 s


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The archives of a data set in the cache.

    Attributes:
        archives: the checked file of each, by name.
        origins: the mirror of each, or "the cache".
        reasons: why a mirror failed, by mirror.
    """

    archives: dict[str, Path] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class NoMirrorError(InputError):
    """Every mirror failed: a message with each mirror, its reason, and how to supply a copy."""

    def __init__(self, title: str, missing: Sequence[str], reasons: Mapping[str, str]) -> None:
        width = max(map(len, reasons), default=0)
        tried = "".join(f"  {mirror:<{width}}  {reason}\n" for mirror, reason in reasons.items())
        ValueError.__init__(
            self,
            f"no mirror gave {', '.join(missing)} of {title}:\n{tried}"
            "To supply a copy, put these files into a folder and run again with "
            f"{paths.MIRROR_VARIABLE}=/that/folder, or add the folder to data.mirrors in params.yaml.",
        )


def fetch(known: DataSet, cache: Path, *, ahead: Sequence[str] = ()) -> Fetched:
    """Bring all archives into `cache`, from the first mirrors that have them.

    The order is `MNIST_MIRROR`, `ahead`, the mirrors of the data set. A mirror that failed is not tried
    for the other archives. An archive in the cache is found by its digest, so data sets and branches share
    the folder, and processes may fetch at once: each file arrives whole.

    Raises:
        NoMirrorError: an archive is neither in the cache nor on any mirror.
        OSError: the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    fetched, missing = Fetched(), dict[Archive, Path]()
    for name, sums in known.checksums.items():
        path = cache / (sums.sha256 or sums.md5)[:12] / name
        if path.is_file() and _is_right(path, sums):
            fetched.archives[name], fetched.origins[name] = path, "the cache"
        else:
            missing[name] = path
    for mirror in dict.fromkeys(
        filter(None, [os.environ.get(paths.MIRROR_VARIABLE), *ahead, *known.mirrors])
    ):
        for name, path in list(missing.items()):
            try:
                with files.replacing(path) as part:
                    _copy(mirror, name, part, known.checksums[name])
            except (OSError, HTTPException, RuntimeError, ValueError) as error:
                fetched.reasons[_shown(mirror)] = f"{name}: {_reason(error)}"
                break
            fetched.archives[name], fetched.origins[name] = path, _shown(mirror)
            del missing[name]
    if missing:
        raise NoMirrorError(known.title, list(missing), fetched.reasons)
    return fetched


def _copy(mirror: str, name: str, part: Path, sums: Checksums) -> None:
    """Copy one archive from a mirror to `part` and check it."""
    url = urlsplit(mirror)
    if "@" in url.netloc:  # urllib would print it
        raise ValueError("a name or password in a URL is not supported")
    if url.scheme in {"", "file"}:
        path = url2pathname(url.path) if url.scheme else os.path.expanduser(mirror)  # noqa: PTH111 -- no error
        folder = Path(os.path.realpath(paths.root() / path))  # of a loop of links too
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder: {folder}")
        part.write_bytes((folder / name).read_bytes())
    else:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT_SECONDS)
        try:
            part.unlink()  # torchvision would take the empty file for the archive
            _torchvision().utils.download_url(f"{mirror.rstrip('/')}/{name}", part.parent, part.name)
        finally:
            socket.setdefaulttimeout(before)
    if not _is_right(part, sums):
        raise ValueError("wrong checksum")


def _is_right(path: Path, sums: Checksums) -> bool:
    return _torchvision().utils.check_integrity(path, sums.md5) and sums.sha256 in {None, files.sha256(path)}


def _torchvision() -> ModuleType:
    """Import `torchvision.datasets`, which takes 2 to 3 s; its progress bar is for terminals alone."""
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    from torchvision import datasets  # type: ignore[import-untyped]

    module: ModuleType = datasets
    return module


def _reason(error: Exception) -> str:
    """Return one line about an error."""
    if isinstance(error, HTTPError):
        error.close()
        return f"HTTP {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, URLError):
        return f"no connection ({cause})"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _shown(mirror: str) -> str:
    """Return a mirror without the user, password and query that its URL may have."""
    url = urlsplit(mirror)
    if not url.scheme:
        return mirror
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def read(archives: Mapping[str, Path]) -> tuple[Images, Images]:
    """Read the training and the test images of four archives, by name.

    Raises:
        InputError: an archive is not gzip, or does not hold uint8 images of 28x28 pixels, or as many
            labels as there are images.
    """
    arrays = {name: _numbers(name, path) for name, path in archives.items()}
    return _split(arrays, "train"), _split(arrays, "t10k")


def _numbers(name: str, path: Path) -> Bytes:
    """Unpack and read one archive with torchvision."""
    datasets = _torchvision()
    read_file = datasets.mnist.read_label_file if "labels" in name else datasets.mnist.read_image_file
    with tempfile.TemporaryDirectory() as folder:
        try:
            numbers: Bytes = read_file(datasets.utils.extract_archive(path, folder)).numpy().astype(np.uint8)
        except (
            AssertionError,
            EOFError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            zlib.error,
        ) as error:
            found = " ".join(str(error).split()) or type(error).__name__
            raise InputError(name, found=found, expected="a gzip archive of uint8 in IDX format") from None
    return numbers


def _split(arrays: Mapping[str, Bytes], prefix: str) -> Images:
    images_file, labels_file = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    images_NHW, labels_N = arrays[images_file], arrays[labels_file]
    if images_NHW.shape[1:] != IMAGE_SHAPE:
        found = f"images of {images_NHW.shape[1:]}"
        raise InputError(images_file, found=found, expected=f"{IMAGE_SHAPE} pixels")
    if len(images_NHW) != len(labels_N):
        expected = f"{len(images_NHW)}, one an image"
        raise InputError(labels_file, found=f"{len(labels_N)} labels", expected=expected)
    return Images(images_NHW=images_NHW, labels_N=labels_N)
