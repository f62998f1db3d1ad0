"""Ways in which a file may be wrong: other bytes, other values, or something in its place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from safetensors.numpy import load, save

Mutate = Callable[[Path, Random], object]
Change = Callable[[bytes, Random], bytes]
DEEP = "[" * 5000 + "]" * 5000
BOMB = "[&a0 [x], " + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)) + "]"
VALUES = {"null": "null", "a-list": "[]", "keys": "{}", "text": '"text"', "negative": "-1", "deep": DEEP}
VALUES |= {"huge": "1" + 400 * "0", "beyond-floats": "1e999"}
YAML_VALUES, JSON_VALUES = (
    {"NaN": ".nan", "infinity": "-.inf", "a-bomb": BOMB},
    {"NaN": "NaN", "inf": "Infinity"},
)


def _at(change: Callable[[bytes, Random], bytes], *, lines: bool = False) -> Change:
    """Return a change of one byte, or of one line, of a file."""

    def changed(content: bytes, rng: Random) -> bytes:
        parts = content.splitlines(keepends=True) if lines else [bytes([byte]) for byte in content]
        number = rng.randrange(len(parts))
        return b"".join([*parts[:number], change(parts[number], rng), *parts[number + 1 :]])

    return changed


ANY: dict[str, Change] = {
    "a-bit-flipped": _at(lambda byte, rng: bytes([byte[0] ^ 1 << rng.randrange(8)])),
    "truncated": lambda content, rng: content[: rng.randrange(1, len(content))],
    "emptied": lambda *_: b"",
    "the-first-line-alone": lambda content, _: content[: content.find(b"\n") + 1] or content[:64],
    "twice": lambda content, _: content + content,
    "noise": lambda content, rng: rng.randbytes(min(len(content), 10_000)),
}
TEXT: dict[str, Change] = {
    "a-line-doubled": _at(lambda line, _: line + line, lines=True),
    "in-UTF-16": lambda content, _: content.decode().encode("utf-16"),
    "with-BOM": lambda content, _: b"\xef\xbb\xbf" + content,
    "with-a-letter-in-Latin-1": _at(lambda byte, _: byte + b"\xe9"),
    "with-CRLF": lambda content, _: content.replace(b"\n", b"\r\n"),
}


def _leaves(value: Any) -> list[tuple[Any, Any]]:
    """Return all places in nested keys and lists, each as its parent and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *_leaves(inner))]


def _tree(raw: str) -> Change:
    """Return a change of a value in a JSON or YAML file to this text; an empty one deletes its key."""

    def changed(content: bytes, rng: Random) -> bytes:
        values = YAML(typ="safe").load(content)  # reads JSON, too
        parent, key = rng.choice(_leaves(values))
        parent[key] = "@@"
        if not raw:
            del parent[key]
        return json.dumps(values, indent=2).replace('"@@"', raw).encode()

    return changed


def _cell(text: bytes) -> Change:
    def changed(line: bytes, rng: Random) -> bytes:
        cells = line.rstrip().split(b",")
        cells[rng.randrange(len(cells))] = text
        return b",".join(cells) + b"\n"

    return _at(changed, lines=True)


def _tensor(change: Callable[[NDArray[Any]], NDArray[Any]] | None) -> Change:
    """Return a change of a tensor in a safetensors file, whose metadata stay; None deletes it."""

    def changed(content: bytes, rng: Random) -> bytes:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
        name = rng.choice(sorted(tensors))
        old = tensors.pop(name)
        if change:
            tensors[name] = np.ascontiguousarray(change(old))
        return save(tensors, metadata)

    return changed


VALUE = {f"with-{name}": _tree(raw) for name, raw in VALUES.items()} | {"a-key-deleted": _tree("")}
IN_YAML = VALUE | {f"with-{name}": _tree(raw) for name, raw in YAML_VALUES.items()}
OWN: dict[str, dict[str, Change]] = {
    ".yaml": IN_YAML,
    ".lock": IN_YAML,
    "": IN_YAML,  # MLmodel
    ".json": VALUE | {f"with-{name}": _tree(raw) for name, raw in JSON_VALUES.items()},
    ".csv": {f"a-cell-{text.decode()}": _cell(text) for text in (b"", b"nan", b"-1", b"1e999", b"text")},
    ".safetensors": {
        "with-NaN": _tensor(lambda old: np.full(old.shape, np.nan, np.float32)),
        "with-zeros": _tensor(np.zeros_like),
        "with-float64": _tensor(lambda old: old.astype(np.float64)),
        "with-another-axis": _tensor(lambda old: old[None]),
        "without-a-tensor": _tensor(None),
        "without-metadata": lambda content, _: save(load(content)),
    },
}


def _bytes(change: Change) -> Mutate:
    def mutate(path: Path, rng: Random) -> None:
        content, mode = path.read_bytes(), path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(change(content, rng))
        path.chmod(mode)  # DVC believes what is read-only

    return mutate


def replaced(make: Callable[[Path], object]) -> Mutate:
    """Return a mutation that puts something else in the place of a file."""

    def mutate(path: Path, _: Random) -> None:
        path.unlink()
        make(path)

    return mutate


PLACES: dict[str, Mutate] = {
    "missing": replaced(lambda _: None),
    "a-folder": replaced(Path.mkdir),
    "a-broken-link": replaced(lambda path: path.symlink_to("nowhere")),
    "a-link-to-itself": replaced(lambda path: path.symlink_to(path.name)),
    **({"unreadable": lambda path, _: path.chmod(0)} if os.geteuid() else {}),  # nothing is so to root
}
FIFO: dict[str, Mutate] = {"a-FIFO": replaced(os.mkfifo)}


def contents(name: str) -> dict[str, Mutate]:
    """Return the mutations of the content of a file of this name."""
    kind = Path(name).suffix if name != ".dvc/config" else ".config"
    text = {} if kind in (".safetensors", ".onnx", ".png", ".gz", ".db") else TEXT
    return {how: _bytes(change) for how, change in {**ANY, **text, **OWN.get(kind, {})}.items()}


def of(name: str) -> dict[str, Mutate]:
    """Return all mutations of a file of this name."""
    # MLflow, and what reads our caches, would wait for a FIFO.
    return {**contents(name), **PLACES, **({} if name.startswith((".cache", "mlartifacts")) else FIFO)}
