"""Files written whole or not at all, and their digests."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block succeeds.

    A reader sees the old file or the new one, never a part; a block that raises leaves the old
    one as it was and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes files private; an out is as readable as any
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has, on every system."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file of the pipeline.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except ValueError as error:
        raise InputError(str(path), found=f"no JSON ({error})", expected="a JSON file") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's bytes, in hex.

    Raises:
        InputError: the file is missing.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise missing(path) from None


def missing(path: Path) -> InputError:
    """Return the error for a missing input of a stage."""
    return InputError(
        str(path), found="no such file", expected="the output of an earlier stage: run `dvc repro`"
    )
