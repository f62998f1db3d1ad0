"""Where the archives of the data set come from: a cache, and mirrors that are tried in order.

torchvision's own download is not used: it has no time-outs, always draws its bar, cannot copy from
a `file://` URL (0.29.2), and some faults of a mirror (a broken answer, a malformed URL) end it
rather than send it on to the next. Nor is its reader, whose import brings torch and its compiler
(with it the stage takes 4.2 s of CPU, without it 0.5), and which keeps an archive in memory twice.
Tests hold what is read here against it.

Shape suffixes: N images, H rows, W columns.
"""

import hashlib
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import NoReturn, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

from tqdm import tqdm

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data import idx
from mnist.data.catalog import Checksums, DataSet
from mnist.data.store import Images

USER_AGENT = "pytorch/vision"  # as torchvision calls itself; some hosts refuse Python's own name
VARIABLE = paths.MIRROR_VARIABLE

STALL_SECONDS = 10.0  # without a byte: TCP sends a lost request for a connection anew after 1, 3 and 7 s
MIN_BYTES_PER_SECOND = 20_000  # a mean; the largest archive, 9.9 MB, then takes 8 minutes at most
MAX_BYTES = 2**30  # of one archive: room for 50 times MNIST, and an end where a server sends without one
CHUNK_BYTES = 2**16

# Chunks with the total where the server told it, and at the end None or what went wrong.
_Arrivals: TypeAlias = queue.SimpleQueue[tuple[bytes, int | None] | Exception | None]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A checked archive in the cache.

    Attributes:
        origin: the mirror that it came from just now, or "the cache".
    """

    path: Path
    origin: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """All archives, by name, and why mirrors on the way to them were of no use."""

    archives: dict[str, Archive] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class NoMirrorError(InputError):
    """Every mirror failed: the message lists each with its reason, and how to do without."""

    def __init__(self, title: str, missing: list[str], reasons: dict[str, str]) -> None:
        width = max(map(len, reasons), default=0)
        tried = "".join(f"  {mirror:<{width}}  {reason}\n" for mirror, reason in reasons.items())
        ValueError.__init__(
            self,
            f"no mirror gave {', '.join(missing)} of {title}:\n{tried}"
            f"To supply a copy, put these files into a folder and run again with {VARIABLE}=/that/folder, "
            "or add the folder to data.mirrors in params.yaml.",
        )


class _Fault(Exception):  # noqa: N818 it never leaves this module
    """Why a mirror did not give an archive; `whole` if it will not give another one either."""

    def __init__(self, reason: str, *, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


def fetch(known: DataSet, cache: Path, *, ahead: Sequence[str] = ()) -> Fetched:
    """Bring all archives into `cache`, from the first mirrors that have them.

    `MNIST_MIRROR` goes ahead of all, then those of `ahead`, then the data set's own. An archive whose
    checksums are right in the cache is not fetched again; it is kept by its digest, so that each data
    set has its own, one of another branch too. Processes may fetch at once: each file arrives whole.

    Raises:
        NoMirrorError: an archive is neither in the cache nor on any mirror.
        InputError: the cache cannot be written.
    """
    fetched, missing = Fetched(), dict[str, Checksums]()
    first = [mirror] if (mirror := os.environ.get(VARIABLE)) else []
    try:
        for name, sums in known.checksums.items():
            path = _place(cache, name, sums)
            if path.is_file() and not _difference(path, sums):
                fetched.archives[name] = Archive(path=path, origin="the cache")
            else:
                missing[name] = sums
        for mirror in dict.fromkeys([*first, *ahead, *known.mirrors]):
            if missing:
                _fetch_from(mirror, missing, cache, fetched)
    except OSError as error:  # those of the mirrors are faults by now
        raise InputError(str(cache), found=f"{error}", expected="a folder to keep the archives in") from None
    if missing:
        raise NoMirrorError(known.title, list(missing), fetched.reasons)
    return fetched


def _fetch_from(mirror: str, missing: dict[str, Checksums], cache: Path, fetched: Fetched) -> None:
    """Move what this mirror has from `missing` to `fetched`, and note why it has not the rest."""
    faults = []
    for name, sums in list(missing.items()):
        path = _place(cache, name, sums)
        try:
            with files.replacing(path) as part:
                _copy(mirror, name, part, sums)
        except _Fault as fault:
            faults.append(str(fault))
            if fault.whole:
                break
        else:
            fetched.archives[name] = Archive(path=path, origin=_shown(mirror))
            del missing[name]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        fetched.reasons[_shown(mirror)] = faults[0] + more


def _place(cache: Path, name: str, sums: Checksums) -> Path:
    return cache / (sums.sha256 or sums.md5)[:12] / name


def read(archives: dict[str, Archive]) -> tuple[Images, Images]:
    """Map the training and the test images of the archives into memory.

    They are unpacked into the system's temporary folder, whose file is gone when they are.

    Raises:
        InputError: an archive is not gzip, or does not hold uint8 images of 28x28 pixels or as
            many labels as there are images.
    """
    # Beside the archives, which have room, and not in what may be memory. On NFS a mapped file stays
    # in the way of its folder's end.
    beside = next(iter(archives.values())).path.parent
    with tempfile.TemporaryDirectory(dir=beside, ignore_cleanup_errors=True) as folder:
        for name, archive in archives.items():
            idx.unpack(archive.path, Path(folder) / name)
        return _split(Path(folder), "train"), _split(Path(folder), "t10k")


def _split(folder: Path, prefix: str) -> Images:
    images_file, labels_file = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    images_NHW = idx.read(folder / images_file, name=images_file, rank=3)
    labels_N = idx.read(folder / labels_file, name=labels_file, rank=1)
    if images_NHW.shape[1:] != (28, 28):
        raise InputError(
            images_file, found=f"images of {images_NHW.shape[1:]}", expected="of (28, 28) pixels"
        )
    if len(images_NHW) != len(labels_N):
        raise InputError(
            labels_file, found=f"{len(labels_N)} labels", expected=f"{len(images_NHW)}, one an image"
        )
    return Images(images_NHW=images_NHW, labels_N=labels_N)


def _copy(mirror: str, name: str, part: Path, sums: Checksums) -> None:
    """Copy one archive from a mirror to `part` and check it.

    Raises:
        _Fault: the mirror has no such archive, has another one, or is too slow.
    """
    num_bytes, first, started = 0, b"", 0.0
    with part.open("wb") as stream, _bar(name) as bar:
        for chunk, total in _chunks(mirror, name):
            first, started = first or chunk, started or time.monotonic()
            stream.write(chunk)
            num_bytes += len(chunk)
            bar.total = total
            bar.update(len(chunk))
            if num_bytes > MAX_BYTES:
                raise _Fault(f"more than {MAX_BYTES} bytes for {name}")
            seconds = time.monotonic() - started
            if seconds > STALL_SECONDS and num_bytes < MIN_BYTES_PER_SECOND * seconds:
                raise _Fault(f"slower than {MIN_BYTES_PER_SECOND / 1000:g} kB/s", whole=True)
    if difference := _difference(part, sums):
        head = "" if first.startswith(b"\x1f\x8b") else f", no gzip archive but {first[:15]!r}"
        raise _Fault(f"wrong bytes for {name}: {difference}{head}")


def _bar(name: str) -> "tqdm[NoReturn]":
    """A bar of bytes on a terminal, and none in a log (`disable=None`)."""
    # tqdm's own look at the size draws nothing on a terminal that does not tell it (0x0).
    ncols, nrows = shutil.get_terminal_size()
    return tqdm(desc=name, unit="B", unit_scale=True, disable=None, leave=False, ncols=ncols, nrows=nrows)


def _chunks(mirror: str, name: str) -> Iterator[tuple[bytes, int | None]]:
    """The bytes of one archive, with their total number where it is known.

    Raises:
        _Fault: whatever went wrong.
    """
    try:
        source = _locate(mirror, name)
        num_bytes, total = 0, None
        for chunk, total in _over_http(source) if isinstance(source, str) else _from_file(source):
            num_bytes += len(chunk)
            yield chunk, total
    except HTTPError as error:
        error.close()
        raise _Fault(f"HTTP {error.code} for {name}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _fault(error, name) from None
    if total is not None and num_bytes < total:  # `read1` does not tell
        raise _Fault(f"{name} broke off after {num_bytes} of {total} bytes")


def _fault(error: Exception, name: str) -> _Fault:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return _Fault(f"nothing came for {STALL_SECONDS:g} s", whole=True)
    if isinstance(error, ValueError | InvalidURL):
        return _Fault(f"malformed URL ({error})", whole=True)
    if isinstance(error, URLError):
        return _Fault(f"no connection ({cause})", whole=True)
    if isinstance(error, HTTPException):
        return _Fault(f"broken answer for {name} ({type(error).__name__})")
    return _Fault(f"{getattr(error, 'strerror', None) or error} for {name}")


def _locate(mirror: str, name: str) -> Path | str:
    """The path or the http(s) URL of an archive.

    Raises:
        _Fault: the mirror is neither a folder nor a URL that can be used.
        ValueError: the URL is malformed.
    """
    if "://" not in mirror:
        # Those of Path raise RuntimeError for an unknown user and for a loop of links.
        folder = os.path.realpath(paths.root() / os.path.expanduser(mirror))  # noqa: PTH111
        return Path(folder) / name
    url = urlsplit(mirror)
    if url.scheme == "file":
        if url.netloc not in {"", "localhost"}:
            raise _Fault(
                f"names the host {url.netloc!r}: a file:// URL of this machine is file:///...", whole=True
            )
        return Path(url2pathname(url.path)) / name
    if url.scheme not in {"http", "https"}:
        raise _Fault(f"{url.scheme}:// is not known here, only a folder, file:// and http(s)://", whole=True)
    if "@" in url.netloc:
        raise _Fault("a name or password in a URL is not supported", whole=True)
    return url._replace(path=f"{url.path.rstrip('/')}/{name}").geturl()


def _from_file(path: Path) -> Iterator[tuple[bytes, int]]:
    if not path.parent.is_dir():
        raise _Fault(f"no such folder: {path.parent}", whole=True)
    if not path.is_file():
        raise _Fault(f"no {path.name} in it")
    with path.open("rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk, total


def _over_http(url: str) -> Iterator[tuple[bytes, int | None]]:
    """Bytes as they come, from a thread of their own.

    The time-out of a socket is anew with every byte, and the look-up of a name has none: only
    somebody else can tell that a server drips its headers for ever.

    Raises:
        TimeoutError: nothing came for STALL_SECONDS.
        Exception: what else `urllib` raised.
    """
    arrived: _Arrivals = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_receive, args=(url, arrived, stop), daemon=True).start()
    try:
        while (item := arrived.get(timeout=STALL_SECONDS)) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    except queue.Empty:
        raise TimeoutError from None
    finally:
        stop.set()


def _receive(url: str, arrived: _Arrivals, stop: threading.Event) -> None:
    try:
        request = Request(url, headers={"User-Agent": USER_AGENT})  # noqa: S310 http(s) by `_locate`
        with urlopen(request, timeout=STALL_SECONDS) as response:  # noqa: S310
            total = response.length
            while not stop.is_set() and (chunk := response.read1(CHUNK_BYTES)):
                arrived.put((chunk, total))
        arrived.put(None)
    except Exception as error:  # noqa: BLE001 it is raised in the thread that waits
        arrived.put(error)


def _difference(path: Path, sums: Checksums) -> str:
    """How a file's checksums are others than these; empty where they are these."""
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    for kind, found, wanted in (
        ("SHA-256", files.sha256(path) if sums.sha256 else None, sums.sha256),
        ("MD5", md5, sums.md5),
    ):
        if found and wanted and found != wanted:
            return f"{kind} {found[:12]}, not {wanted[:12]}"
    return ""


def _shown(mirror: str) -> str:
    """A mirror without the secrets that its URL may hold, fit for a log."""
    if "://" not in mirror:
        return mirror
    scheme, rest = mirror.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
