"""Custody: each stage checks what it reads against what the earlier stages wrote down in git.

A stage ends with its receipt, `metrics/receipts/<stage>.json`: the SHA-256 of the pipeline's files that it
read and wrote, and its params. DVC compares files with its own record, and updates that record to whatever
its cache or a user put there: a damaged object, or weights that a stage made by hand beside the scores of
other weights. Such files never pass a receipt.
"""

import configparser
import hashlib
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist.core import config, files, paths
from mnist.core.errors import InputError
from mnist.core.pipeline import Pipeline

RECEIPTS = Path("metrics/receipts")
DATA = {".yaml", ".yml", ".json", ".csv"}  # files of people that hold no code


class Receipt(config.Section):
    """What a stage read and wrote.

    Attributes:
        params: that `dvc.yaml` lists for the stage, by dotted keys.
        deps: SHA-256 of the files that it read, by path: those of earlier stages, and that of the data set.
        outs: SHA-256 of the files and folders that it wrote, by path.
        machine: on whose kind the bytes of its outs depend; None where they depend on none.
    """

    params: dict[str, Any]
    deps: dict[str, config.Digest]
    outs: dict[str, config.Digest]
    machine: str | None = None


def receipt_of(stage: str) -> Path:
    """Return the path of a stage's receipt."""
    return RECEIPTS / f"{stage}.json"


@contextmanager
def held(stage: str, folder: Path = Path()) -> Iterator[dict[str, str]]:
    """Check what a stage reads, run the block, and write the stage's receipt if its outs list one.

    The block gets a dictionary, in which it may set the receipt's `machine`. While it runs the receipt is
    empty, since DVC would report a missing metric.

    Raises:
        InputError: as `check`.
    """
    checkout = _Checkout(folder)
    deps = checkout.check(stage)
    deps |= {dep: found for dep, found in checkout.sources(stage).items() if found}
    more, params = dict[str, str](), checkout.params(stage)
    receipt = receipt_of(stage)
    is_made = checkout.makers.get(receipt.as_posix()) == stage
    if is_made:
        files.write_json(folder / receipt, [])
    yield more
    if is_made:
        outs = (out for out in checkout.stages[stage].made if out != receipt.as_posix())
        digests = {out: digest(folder / out) for out in outs}
        content = Receipt(params=params, deps=deps, outs=digests, **more)
        files.write_json(folder / receipt, [content.model_dump(exclude_none=True)])


def check(stage: str, folder: Path = Path()) -> None:
    """Check all files of earlier stages that a stage reads, and what these were made of.

    Raises:
        InputError: a file is missing, or is not the one that its stage wrote, or that stage ran with
            other params or other files.
    """
    _Checkout(folder).check(stage)


def machine(folder: Path) -> str:
    """Return the machine that the receipts of a checkout name; empty where none does."""
    receipts = sorted((folder / RECEIPTS).glob("*.json"))
    return next(filter(None, (_read(file, str(file)).machine for file in receipts)), "")


def _read(file: Path, where: str) -> Receipt:
    """Read a receipt: a list of one, in which DVC finds no metric."""
    if not file.is_file() or (values := files.read_json(file)) == []:
        expected = f"that of a `{file.stem}` that succeeded: run `dvc repro`"
        raise InputError(where, found="no receipt", expected=expected)
    return config.check(Receipt, values[0] if isinstance(values, list) else values, where)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; of a folder, that of its files' names and digests.

    A folder's hidden files of killed writers do not count; DVC ignores them, too.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_dir():
        return files.sha256(path)
    lines = [
        f"{files.sha256(file)}  {file.relative_to(path).as_posix()}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith(files.PART)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Checkout(Pipeline):
    """The files, params and receipts of the stages of a checkout."""

    def check(self, stage: str) -> dict[str, str]:
        """Return the digests of the files of earlier stages that a stage reads, all as it may read them."""
        deps = {dep: digest(self.folder / dep) for dep in self._inputs(stage)}
        for dep, found in deps.items():
            maker = self.makers[dep]
            receipt = self.receipt(maker)
            if receipt and found != (wrote := receipt.outs.get(dep, "nothing")):
                damaged = _damaged_object(self.folder / dep)
                remove = f"`rm {shlex.quote(str(damaged))}`, then " if damaged else ""
                expected = f"{wrote[:12]}, which `{maker}` wrote: run {remove}`dvc repro --force {maker}`"
                raise InputError(dep, found=f"SHA-256 {found[:12]}", expected=expected)
        for maker in self._before(stage):
            self._check_origin(maker)
        return deps

    def _check_origin(self, stage: str) -> None:
        """Check that a stage ran with the params of today, on what the stages before it wrote."""
        receipt, where = self.receipt(stage), receipt_of(stage)
        if receipt is None:
            return
        params = self.params(stage)
        for key in sorted(params.keys() | receipt.params.keys()):
            found, wanted = receipt.params.get(key), params.get(key)
            if found != wanted:
                expected = f"{wanted!r}, as it is now: run `dvc repro`"
                raise InputError(f"{where}: {key}", found=f"{found!r}", expected=expected)
        present = self.sources(stage)
        for dep in self._inputs(stage):
            if made := self.receipt(self.makers[dep]):
                present[dep] = made.outs.get(dep, "nothing")
        for dep, is_now in present.items():
            if (read := receipt.deps.get(dep, "")) != is_now:
                expected = f"the present one ({is_now[:12] or 'none'}): run `dvc repro`"
                found = f"another {dep} ({read[:12] or 'none'})"
                raise InputError(str(where), found=found, expected=expected)

    def sources(self, stage: str) -> dict[str, str]:
        """Return the digests of the files that people write and a stage reads, but code; empty for none."""
        return {
            dep: files.sha256(path) if (path := self.folder / dep).is_file() else ""
            for dep in self.deps(stage)
            if dep not in self.makers and Path(dep).suffix in DATA
        }

    def _inputs(self, stage: str) -> list[str]:
        """Return the paths of the files of other stages that a stage reads."""
        return [dep for dep in self.deps(stage) if dep in self.makers]

    def _before(self, stage: str) -> set[str]:
        """Return the stages that a stage builds on."""
        found: set[str] = set()
        pending = [stage]
        while pending:
            makers = {self.makers[dep] for dep in self._inputs(pending.pop())} - found
            found |= makers
            pending += makers
        return found

    def receipt(self, stage: str) -> Receipt | None:
        """Return the receipt of a stage; None of a stage that writes none.

        Raises:
            InputError: it is missing or malformed.
        """
        file = receipt_of(stage)
        if file.as_posix() not in self.makers:
            return None
        return _read(self.folder / file, str(file))


def _damaged_object(path: Path) -> Path | None:
    """Return the object of DVC's cache that equals a file and, by its name, should not."""
    if path.is_dir():
        return None
    content = path.read_bytes()
    for candidate in cached_objects():
        is_same = candidate.stat().st_size == len(content) and candidate.read_bytes() == content
        if is_same and is_damaged(candidate):
            here = paths.checkout()
            return candidate.relative_to(here) if candidate.is_relative_to(here) else candidate
    return None


def cached_objects() -> Iterator[Path]:
    """Yield the objects in DVC's cache of this checkout; none that is being written."""
    for path in sorted((_cache() / "files/md5").glob("??/*")):
        if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name):
            yield path


def _cache() -> Path:
    """Return the folder of DVC's cache of this checkout.

    Raises:
        InputError: a file of DVC's settings is malformed.
    """
    folder = paths.checkout() / ".dvc"
    settings = configparser.ConfigParser(interpolation=None, inline_comment_prefixes="#", strict=False)
    try:
        settings.read([folder / "config", folder / "config.local"], encoding="utf-8")  # the latter wins
    except (configparser.Error, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())
        raise InputError(".dvc/config", found=found, expected="settings of DVC") from None
    named = settings.get("cache", "dir", fallback="cache").strip("'\"")
    return (folder / Path(named).expanduser()).resolve()


def is_damaged(cached: Path) -> bool:
    """Return whether the MD5 of an object differs from its name, the MD5 of what DVC stored."""
    with cached.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return found != cached.parent.name + cached.name.removesuffix(".dir")
