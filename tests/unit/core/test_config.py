"""`params.yaml`: its keys, its reader, and the errors."""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml

from mnist.core import config, paths
from mnist.core.config import Data, Params
from mnist.core.errors import InputError

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / paths.PARAMS).read_text(encoding="utf-8")
HEAVY = {"torch", "torchvision", "mlflow", "great_expectations", "pandas", "matplotlib", "dvc"}

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A copy of `params.yaml` in which `edited(lr="1e-3")` has replaced the value of a key."""

    def edit(*, more: str = "", **spellings: str) -> Path:
        text = TEXT
        for key, spelling in spellings.items():
            (line,) = re.findall(rf"^ *{key}: .*\n", text, re.MULTILINE)
            text = text.replace(line, f"{line.partition(':')[0]}: {spelling}\n")
        path = tmp_path / "params.yaml"
        path.write_text(text + more, encoding="utf-8")
        return path

    return edit


def fault(path: Path) -> str:
    """Return the error of a bad file without its name, with which the line begins."""
    with pytest.raises(InputError) as caught:
        config.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.splitlines() == [message]
    return message.removeprefix(f"{path}: ")


# ---- numbers


@pytest.mark.parametrize(
    "spelling",
    [
        *("1e-5", "1e-05", "1e-3", "1E5", "1e5", "1.e3", ".5", "5.", "0.5", "+1.5", "-1.5", "1_000", "1,5"),
        *("0o17", "017", "08", "0x1F", "0b11", "1", "0", "1:30", "1:30.5", "2024-01-01", "1e"),
        *("yes", "no", "on", "off", "y", "true", "False", "~", "null", ".inf", "-.inf", ".nan", "nan", "inf"),
        *("'1'", '"0.5"', "[1]"),
    ],
)
def test_values_are_read_as_dvc_reads_them(edited: Edit, spelling: str) -> None:
    """Each of four keys takes the value that DVC reads, or refuses it and names that value."""
    value = parse_yaml(f"key: {spelling}\n", "params.yaml")["key"]
    kind = type(value)
    takes = {
        "lr": kind in (int, float) and 0 < value < math.inf,
        "epochs": kind is int and value >= 1,
        "permute_pixels": kind is bool,
        "model_name": kind is str and not {",", ":", "/", "+"} & set(value),
    }

    read = config.load(edited(**{key: spelling for key, taken in takes.items() if taken}))
    line = fault(edited(**{key: spelling for key, taken in takes.items() if not taken}))

    for key, taken in takes.items():
        if taken:
            got = read.registry.model_name if key == "model_name" else getattr(read, key)
            assert (got, type(got)) == (value, float if key == "lr" else kind)
        assert (f"{key}: found {value!r}, expected " in line) is not taken


# ---- mistakes


@pytest.mark.parametrize(
    ("key", "spelling", "line"),
    [
        ("lr", '"fast"', "lr: found 'fast', expected a valid number"),
        ("model", "cnn", "model: found 'cnn', expected 'simple_cnn' or 'mlp'"),
        ("optimizer", "SGD", "optimizer: found 'SGD', expected 'sgd', 'nesterov' or 'adam'"),
        ("dataset", "a.b", "dataset: found 'a.b', expected String should match pattern"),
        ("model_name", "'{data}-cnn'", "registry.model_name: found '{data}-cnn', expected String should"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(edited: Edit, key: str, spelling: str, line: str) -> None:
    assert fault(edited(**{key: spelling})).startswith(line)


# Of each number: the values that are accepted at the ends, and the nearest ones that are not.
RANGES: dict[str, tuple[list[float], list[float]]] = {
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "val_size": ([1], [0]),
    "n_features": ([1, 1024], [0, 1025]),
    "epochs": ([1], [0]),
    "batch_size": ([1], [0]),
    "lr": ([1e-300, 1e300], [0.0, -1e-9, math.inf, math.nan]),
    "momentum": ([0.0, 0.999], [-1e-9, 1.0]),
    "beta2": ([0.0, 0.999], [-1e-9, 1.0]),
    "label_smoothing": ([0.0, 0.999], [-1e-9, 1.0]),
    "shift": ([0, 14], [-1, 15]),
    "num_threads": ([1, 1024], [0, 1025]),
    "processes": ([1, 4096], [0, 4097]),
    "checkpoint_epochs": ([0], [-1]),
    "registry.min_accuracy": ([0.0, 1.0], [-1e-9, 1.1]),
    "registry.alpha": ([1e-300, 0.999], [0.0, 1.0]),
}


@pytest.mark.parametrize("key", RANGES)
def test_a_number_is_accepted_up_to_its_ends(key: str) -> None:
    def check(value: float) -> Params:
        values = config.load(ROOT / paths.PARAMS).model_dump()
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
        return config.check(Params, values, "params")

    accepted, refused = RANGES[key]
    for value in accepted:
        assert config.flat(check(value).model_dump())[key] == value
    for value in refused:
        with pytest.raises(InputError) as caught:
            check(value)
        assert caught.value.where == f"params: {key}"


def test_keys_of_any_yaml_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    assert config.read_keys(tmp_path, Path("keys.yaml")) == {}
    file.write_bytes(b"")
    assert config.read_keys(tmp_path, Path("keys.yaml")) == {}
    file.write_bytes(b"a: {b: {c: 1e-5}, d: [1]}\ne: x\n")
    read = config.read_keys(tmp_path, Path("keys.yaml"))
    assert (
        read == config.parse_keys(file.read_text(), "text") == {"a": {"b": {"c": 1e-5}, "d": [1]}, "e": "x"}
    )
    assert config.flat(read) == {"a.b.c": 1e-5, "a.d": [1], "e": "x"}
    assert config.parse_keys(b"", "empty.yaml") == {}
    with pytest.raises(InputError) as caught:
        config.parse_keys(b"- 1\n", "list.yaml")
    assert (caught.value.where, caught.value.found) == ("list.yaml", "list")


@pytest.mark.parametrize(
    ("value", "typed"), [(None, "-"), ("sgd", "sgd"), (1e-05, "1e-05"), (True, "true"), ([1, 2], "[1, 2]")]
)
def test_a_param_is_shown_as_it_is_typed(value: object, typed: str) -> None:
    assert config.as_typed(value) == typed


@pytest.mark.parametrize(
    "url",
    ["https://me:hush@host/mnist", "https://host/mnist?token=hush", "s3://host#hush", "https:me:hush@host"],
)
def test_a_secret_in_a_mirror_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InputError) as raised:
        config.check(Data, {"mirrors": ["../shared/mnist#1", url]}, "params.yaml")
    assert raised.value.where == "params.yaml: mirrors.1"
    assert "MNIST_MIRROR" in raised.value.expected
    assert "hush" not in str(raised.value)


def test_a_mirror_may_be_a_folder_or_a_url() -> None:
    mirrors = ["../shared/mnist#1", "https://host/mnist"]
    assert config.check(Data, {"mirrors": mirrors}, "params.yaml").mirrors == mirrors


def test_a_data_set_has_mirrors_and_a_registered_model_of_its_own() -> None:
    read = config.load(ROOT / paths.PARAMS)

    assert read.model_name == read.registry.of("mnist").model_name == "mnist-simplecnn"
    assert read.registry.of("fashion_mnist") == read.registry.model_copy(
        update={"model_name": "fashion_mnist-simplecnn"}
    )
    assert read.data.mirrors_of("kmnist") == ["../shared/kmnist"]


def test_all_mistakes_are_told_at_once(edited: Edit) -> None:
    path = edited(lr="fast", epochs="0", model="cnn", min_accuracy="2", more="\nbatchsize: 32\n")
    path.write_text(path.read_text().replace("seed: 0", "sed: 0"))

    line = fault(path).split("; ")

    assert sorted(line) == [
        "batchsize: found a key that nothing reads, expected 'batch_size', perhaps",
        "epochs: found 0, expected greater than or equal to 1",
        "lr: found 'fast', expected a valid number",
        "model: found 'cnn', expected 'simple_cnn' or 'mlp'",
        "registry.min_accuracy: found 2, expected less than or equal to 1",
        "sed: found a key that nothing reads, expected 'seed', perhaps",
        "seed: found nothing, expected a value",
    ]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("fnord: 1", "fnord: found a key that nothing reads, expected only known keys"),
        (
            "  mirors: []",
            "data.mirors: found a key that nothing reads, expected 'data.mirrors', perhaps",
        ),
        ('"a\\nb": 1', "a b: found a key that nothing reads, expected only known keys"),
        ("3: 1", "3: found 3, expected Keys should be strings"),
    ],
    ids=["like nothing", "in a section", "of two lines", "a number"],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(edited: Edit, more: str, line: str) -> None:
    assert fault(edited(more=f"{more}\n")) == line


def bomb(form: str) -> bytes:
    """Return 14 lines of YAML; with all aliases written out, the last has 3^13 = 1.6 million values."""
    lines = [f"{key}: &{key} {form.replace('?', f'*{before}')}" for before, key in pairwise("abcdefghijklmn")]
    return "\n".join(["a: &a {x: 1}", *lines]).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"{TEXT}\nlr: 0.5\n".encode(), 'found duplicate key "lr" with value "0.5" (original value: "0.01")'),
        (b"lr: 1\nseed: [0.5\n\nmodel: mlp\n", "line 4: expected ',' or ']', but got ':'"),
        (b"lr: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor for the tag"),
        (b"lr: !!bool perhaps", "perhaps"),
        (b"lr: 2024-13-45", "month must be in 1..12"),
        (b"lr: 1\n---\nlr: 2\n", "line 2: but found another document"),
        ("# Größe\n".encode("latin-1"), "'utf-8' codec can't decode byte 0xf6"),
        (b"[" * 10_000, "nested too deeply"),
        (bomb("[?, ?, ?]"), "more than 100,000 values"),
        (bomb("{<<: [?, ?, ?]}"), "more than 100,000 values"),
        (b"lr: &lr [*lr]", "more than"),
    ],
    ids=[
        *("duplicate key", "open bracket", "code", "no bool", "no such day", "two documents", "latin-1"),
        *("deep", "aliases of aliases", "merged aliases", "an alias of itself"),
    ],
)
def test_what_is_no_yaml_is_told_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)

    line = fault(path)

    assert line.startswith("found no YAML (")
    assert reason in line


def test_aliases_are_read() -> None:
    assert config.parse("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n", "keys.yaml")["b"] == {
        "x": 1,
        "y": [{"x": 1}, {"x": 1}],
    }


def test_a_long_value_is_cut(edited: Edit) -> None:
    assert len(fault(edited(lr="'" + "9" * 10_000 + "'"))) < 300


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert fault(tmp_path / "params.yaml") == "found no such file, expected the pipeline's params"


def test_a_file_with_a_byte_order_mark_is_read(edited: Edit) -> None:
    path = edited()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert config.load(path) == config.load(ROOT / paths.PARAMS)


# ---- as a user sees them


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("train", "params.yaml: lr: found '1e-', expected a valid number"),
        ("validate", f"{paths.DATASET}: found no such file"),
        ("evaluate", f"{paths.VALIDATION}: found no such file"),
    ],
)
def test_a_mistake_is_one_line_before_any_heavy_import(edited: Edit, stage: str, error: str) -> None:
    folder = edited(lr="1e-" if stage == "train" else "0.01").parent
    shutil.copytree(ROOT / paths.DATASETS, folder / paths.DATASETS)

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"stages.{stage}"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )

    lines = done.stderr.splitlines()
    imported = {line.rsplit("|")[-1].strip() for line in lines if line.startswith("import time:")}
    (message,) = [line for line in lines if not line.startswith("import time:")]
    assert (done.returncode, done.stdout) == (1, "")
    assert message.startswith(f"ERROR: {error}")
    assert "mnist.core.config" in imported
    assert imported & HEAVY == set()
