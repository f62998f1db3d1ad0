"""The archives of a data set: a cache, mirrors in order, and torchvision to read them.

torchvision's own download has no time-out, checks MD5 alone, and falls back from https to http.

Shape suffixes: N images, H rows, W columns.
"""

import hashlib
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import numpy as np

from mnist.core import config, files, paths
from mnist.core.errors import InputError
from mnist.data.catalog import Archive, Checksums, DataSet
from mnist.data.store import IMAGE_SHAPE, Bytes, Images

TIMEOUT_SECONDS = 10.0  # without a byte: TCP repeats a lost request for a connection after 1, 3 and 7 s

WRONG = "wrong checksum"


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


def fetch(known: DataSet, cache: Path, *, ahead: Sequence[str] = ()) -> Fetched:
    """Bring all archives into `cache`, from the first mirrors that have them.

    The order is `MNIST_MIRROR`, `ahead`, the mirrors of the data set. A mirror that failed is not tried
    for the other archives. An archive in the cache is found by its digest, so data sets and branches share
    the folder, and processes may fetch at once: each file arrives whole.

    Raises:
        InputError: an archive is neither in the cache nor on any mirror, or the disk is full.
    """
    fetched, missing = Fetched(), dict[Archive, Path]()
    for name, sums in known.checksums.items():
        path = cache / (sums.sha256 or sums.md5)[:12] / name
        if path.is_file() and _is_right(path, sums):
            fetched.archives[name], fetched.origins[name] = path, "the cache"
        else:
            missing[name] = path
    mirrors = filter(None, [os.environ.get(paths.MIRROR_VARIABLE), *ahead, *known.mirrors])
    for mirror in dict.fromkeys(mirrors):
        is_url = config.is_url(mirror)
        shown = paths.shown(mirror) if is_url else mirror
        for name, path in list(missing.items()):
            try:
                url = mirror if is_url else _url_of(mirror, name)
                with files.replacing(path) as part:
                    _copy(url, name, part, known.checksums[name])
            except InputError:  # a full disk, which no other mirror helps
                raise
            except (OSError, HTTPException, RuntimeError, ValueError) as error:
                fetched.reasons[shown] = f"{name}: {_reason(error)}"
                break
            fetched.archives[name], fetched.origins[name] = path, shown
            del missing[name]
    if missing:
        width = max(map(len, fetched.reasons), default=0)
        tried = "".join(f"\n  {mirror:<{width}}  {reason}" for mirror, reason in fetched.reasons.items())
        raise InputError(
            known.title,
            found=f"no mirror that has {', '.join(missing)}",
            expected="a folder with these files, named by MNIST_MIRROR or in data.mirrors; tried:" + tried,
        )
    return fetched


def _url_of(folder: str, name: str) -> str:
    """Return the URL of a folder that is a mirror; RuntimeError where an archive in it is not compressed."""
    place = (paths.root() / Path(folder).expanduser()).resolve()
    plain = (place / name).with_suffix("")
    if plain.is_file() and not (place / name).exists():
        raise RuntimeError(f"{plain} is not compressed: run `gzip -k {plain}`, then `mnist measure`")
    return place.as_uri()


def _copy(url: str, name: str, part: Path, sums: Checksums) -> None:
    """Fetch one archive; the mirror's URL may have a user with a password, and a query."""
    mirror = urlsplit(url)
    user, _, host = mirror.netloc.rpartition("@")
    place = mirror._replace(netloc=host, path=f"{mirror.path.rstrip('/')}/{name}").geturl()
    request = Request(place, headers={"User-Agent": "mnist"})  # noqa: S310 -- a file:// mirror is allowed
    if user:
        credentials = b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {credentials}")
    with urlopen(request, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as stream:  # noqa: S310
        shutil.copyfileobj(response, stream)
    if not _is_right(part, sums):
        raise ValueError(WRONG)


def _is_right(path: Path, sums: Checksums) -> bool:
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return md5 == sums.md5 and sums.sha256 in {None, files.sha256(path)}


def _reason(error: Exception) -> str:
    """Return one line about an error."""
    if isinstance(error, HTTPError):
        error.close()
        return f"HTTP {error.code}"
    cause = getattr(error, "reason", error)  # of a URLError
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(cause, ValueError | InvalidURL) and str(cause) != WRONG:
        return "no URL"  # their messages quote it, and it may hold a secret
    return " ".join(str(cause).split()) or type(cause).__name__


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
    from torchvision import datasets  # type: ignore[import-untyped]

    read_file = datasets.mnist.read_label_file if "labels" in name else datasets.mnist.read_image_file
    try:
        with files.writing(Path(tempfile.gettempdir())), files.temporary("download") as folder:
            numbers: Bytes = read_file(datasets.utils.extract_archive(path, folder)).numpy().astype(np.uint8)
    except InputError:  # a full disk
        raise
    except Exception as error:  # noqa: BLE001 -- torchvision asserts, and gzip and torch have many errors
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
