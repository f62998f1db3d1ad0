"""Files written whole or not at all, and their digests."""

import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mnist.core.errors import InputError

PART = ".part."  # begins the name of a file that is not whole; .gitignore and .dvcignore have it
TEMPORARY = "mnist-pipeline-"  # begins the name of a temporary folder
ABANDONED_SECONDS = 3600  # after which such a file is one of a killed writer
UMASK = os.umask(0)  # of this process; read once, since other threads may write files meanwhile
os.umask(UMASK)
MADE = "the output of an earlier stage: run `dvc repro`"
NO_SPACE = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block succeeds.

    A reader sees the old file or the new one, never a part; a block that raises leaves the old
    one as it was and nothing beside it.

    Raises:
        InputError: the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in abandoned(path.parent.glob(f"{PART}*.{glob.escape(path.name)}")):
            old.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=PART, suffix=f".{path.name}")
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o666 & ~UMASK)  # mkstemp makes files private; an out is as readable as any
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def abandoned(paths: Iterable[Path], seconds: float = ABANDONED_SECONDS) -> Iterator[Path]:
    """Yield those that are older than `seconds`: their writer was killed."""
    for path in paths:
        try:
            is_old = path.lstat().st_mtime < time.time() - seconds
        except OSError:  # another writer removes them too
            continue
        if is_old:
            yield path


@contextmanager
def temporary(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder, with `purpose` in its name; those that killed processes left are removed."""
    for old in left_behind():
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{purpose}-", ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name).resolve()
        finally:
            os.close(handle)


def left_behind() -> Iterator[Path]:
    """Yield the abandoned temporary folders of this user whose lock no process holds."""
    for folder in abandoned(Path(tempfile.gettempdir()).resolve().glob(f"{TEMPORARY}*")):
        with suppress(OSError):  # no folder, not ours to read, or locked
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_uid == os.getuid():
                    yield folder
            finally:
                os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Run a block that writes `path`, and report a full disk by the name of that file.

    Raises:
        InputError: the disk, or what this user may have of it, is full.
    """
    try:
        yield
    except InputError:  # of another file that the block writes
        raise
    except Exception as error:  # safetensors, for one, raises an error of its own
        for reason in NO_SPACE:
            if reason in str(error):
                raise InputError(str(path), found=reason, expected="space to write it") from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has, on every system."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text, with line feeds on every system."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Append to a file of lines; what is written is on the disk when the block ends.

    A last line that a crash left without its end gets one first.
    """
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def reading(path: Path, expected: str = MADE) -> Iterator[None]:
    """Run a block that reads `path`, and report a file that is missing or cannot be read.

    Raises:
        InputError: it is missing, a folder, closed to this user, or not UTF-8 where it is read as text.
    """
    try:
        yield
    except FileNotFoundError:
        found = "no such file"
    except UnicodeDecodeError as error:
        found = f"no UTF-8 (byte {error.start})"
    except OSError as error:
        found = "a folder" if path.is_dir() else error.strerror or str(error)
    else:
        return
    raise InputError(str(path), found=found, expected=expected)


def read_json(path: Path) -> Any:
    """Parse a JSON file of the pipeline.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    with reading(path):
        return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes | str, where: str) -> Any:
    """Parse JSON.

    Raises:
        InputError: it is not JSON; `where` names it.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise InputError(where, found=f"no JSON ({error})", expected="a JSON file") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's bytes, in hex.

    Raises:
        InputError: the file cannot be read.
    """
    with reading(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
