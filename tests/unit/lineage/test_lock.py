"""The lock: `dvc.yaml` against `dvc.lock` against files, on stages made by hand and on a toy pipeline."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mnist.core.errors import InputError
from mnist.lineage import lock
from mnist.lineage.lock import Out, Stage
from tests.checkout import repository

STAGE = Stage(
    name="train",
    cmd="python t.py",
    deps={"code": "c1.dir", "data.bin": "d1"},
    params={"params.yaml": {"lr": 0.1, "net": {"width": 8}}, "other.yaml": {"a": 1}},
    outs={
        "weights": Out(kept_in="cache", digest=None),
        "metrics.json": Out(kept_in="git", digest="m1"),
        "noted": Out(kept_in="", digest=None),
    },
)
ENTRY: dict[str, Any] = {
    "cmd": "python t.py",
    "deps": [{"path": "code", "md5": "c1.dir"}, {"path": "data.bin", "md5": "d1"}],
    "params": {"params.yaml": {"lr": 0.1, "net": {"width": 8}}, "other.yaml": {"a": 1}},
    "outs": [
        {"path": "weights", "md5": "w1"},
        {"path": "metrics.json", "md5": "m1"},
        {"path": "noted", "md5": "n1"},
    ],
}


def changes(stage: Stage, entry: Mapping[str, Any] = ENTRY, **others: Any) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in lock.changes(stage, entry, **others)]


def outs(stage: Stage, entry: Mapping[str, Any] = ENTRY) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in lock.changed_outs(stage, entry)]


def test_a_stage_that_is_as_it_ran_has_no_change() -> None:
    assert changes(STAGE) == outs(STAGE) == []
    assert lock.stale_reasons([STAGE], {"train": ENTRY}) == []


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"cmd": "nice"}, [("cmd", "is `nice`, was `python t.py`")]),
        ({"cmd": ["a", "b"]}, [("cmd", "is `a && b`, was `python t.py`")]),
        ({"deps": {**STAGE.deps, "code": "c2.dir"}}, [("code", "changed since")]),
        ({"deps": {**STAGE.deps, "code": None}}, [("code", "is not there")]),
        ({"deps": {**STAGE.deps, "new": "n"}}, [("new", "is a new dep")]),
        ({"deps": {"code": "c1.dir"}}, [("data.bin", "is no dep any more")]),
        ({"params": {**STAGE.params, "other.yaml": {"a": 2}}}, [("other.yaml:a", "is 2, was 1")]),
        (
            {"params": {**STAGE.params, "params.yaml": {"lr": 1e-1, "net": {"width": 9}}}},
            [("net.width", "is 9, was 8")],
        ),
        (
            {"params": {**STAGE.params, "params.yaml": {"net": {"width": 8}, "x": 0}}},
            [("x", "is a new param"), ("lr", "is no param any more")],
        ),
        (
            {"params": {"params.yaml": STAGE.params["params.yaml"]}},
            [("other.yaml:a", "is no param any more")],
        ),
    ],
)
def test_each_change_of_an_input_is_found_alone(now: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert changes(dataclasses.replace(STAGE, **now)) == found


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"weights": Out(kept_in="cache", digest="w1")}, []),
        ({"weights": Out(kept_in="cache", digest="w2")}, [("weights", "is not what it wrote")]),
        ({"metrics.json": Out(kept_in="git", digest=None)}, [("metrics.json", "is not in git")]),
        ({"metrics.json": Out(kept_in="git", digest="m2")}, [("metrics.json", "is not what it wrote")]),
        ({"new": Out(kept_in="git", digest="x")}, [("new", "is a new out")]),
    ],
)
def test_each_change_of_an_out_is_found_alone(now: dict[str, Out], found: list[tuple[str, str]]) -> None:
    assert outs(dataclasses.replace(STAGE, outs={**STAGE.outs, **now})) == found
    assert outs(dataclasses.replace(STAGE, outs={}))[0] == ("weights", "is no out any more")


def test_reasons_name_all_stages_that_share_them() -> None:
    changed = dataclasses.replace(STAGE, deps={**STAGE.deps, "code": "c2.dir"})
    other = dataclasses.replace(changed, name="evaluate")
    new = dataclasses.replace(STAGE, name="new")
    assert lock.stale_reasons([changed, other, new], {"gone": {}, "train": ENTRY, "evaluate": ENTRY}) == [
        "stage train, evaluate: code changed since",
        "stage new: not in dvc.lock",
        "stage gone: in dvc.lock, not in dvc.yaml: delete its lines",
    ]


def test_reasons_go_by_what_the_lock_has_of_an_intermediate_file() -> None:
    maker = Stage(
        name="make", cmd="m", deps={}, params={}, outs={"data.bin": Out(kept_in="cache", digest=None)}
    )
    locked = {"make": {"cmd": "m", "outs": [{"path": "data.bin", "md5": "d1"}]}, "train": ENTRY}
    absent = dataclasses.replace(STAGE, deps={**STAGE.deps, "data.bin": None})
    assert lock.stale_reasons([maker, absent], locked) == []
    locked["make"]["outs"][0]["md5"] = "d2"
    assert lock.stale_reasons([maker, absent], locked) == ["stage train: data.bin changed since"]


def test_digests_are_those_of_files_that_dvc_hashed() -> None:
    entry = {
        "outs": [{"path": "a", "md5": "1"}, {"path": "s3://b", "etag": "2"}],
        "deps": [{"path": "c", "md5": "3"}],
    }
    assert lock.digests(entry, "outs") == {"a": "1"}
    assert lock.digests(entry, "deps") == {"c": "3"}
    assert lock.digests({}, "deps") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"stages: [",
        b"\xff",
        b"{schema: '2.0', stages: 1}",
        b"{schema: '2.0', stages: {train: }}",
        b"{schema: '2.0', stages: {train: {deps: []}}}",
        b"{schema: '2.0', stages: {train: {cmd: t, outs: [{md5: a}]}}}",
    ],
)
def test_a_broken_lock_is_an_error_of_one_line(content: bytes) -> None:
    with pytest.raises(InputError, match=r"^dvc\.lock: found ") as caught:
        lock.parse(content)
    assert "\n" not in str(caught.value)


def test_an_empty_lock_has_no_stages(tmp_path: Path) -> None:
    assert lock.parse(b"") == lock.parse(b"schema: '2.0'") == lock.read(tmp_path) == {}


# A toy pipeline with each kind of dep and out, and its lock as DVC would write it.
PIPELINE = """
stages:
  prepare:
    cmd: prepare
    deps: [raw]
    outs: [data.bin]
  train:
    cmd: train
    deps: [src, data.bin, "sets/${name}.yaml"]
    params: [lr, net]
    outs: [weights.bin, {metrics.json: {cache: false}}, {noted: {cache: false}}]
  evaluate:
    cmd: evaluate
    deps: [weights.bin]
    outs: [{plots: {cache: false}}]
"""
FILES = {
    "dvc.yaml": PIPELINE,
    "params.yaml": "name: one\nlr: 1e-3\nnet: {width: 8}\n",
    ".dvcignore": "__pycache__\n",
    ".dvc/config": "",
    ".gitignore": "/noted\n/*.bin\n",
    "raw": "raw",
    "sets/one.yaml": "a: 1",
    "sets/two.yaml": "a: 2",
    "src/a.py": "a",
    "src/deep/b.py": "b",
    "data.bin": "data",
    "weights.bin": "weights",
    "metrics.json": "{}",
    "noted": "noted",
    "plots/one.png": "png",
}


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def entry(path: str) -> dict[str, str]:
    """An entry of `dvc.lock`; a folder's digest is that of the list of what is in it."""
    inside = {name: text for name, text in FILES.items() if name.startswith(f"{path}/")}
    listed = [{"md5": md5(text), "relpath": name[len(path) + 1 :]} for name, text in sorted(inside.items())]
    return {"path": path, "md5": f"{md5(json.dumps(listed))}.dir" if inside else md5(FILES[path])}


LOCK = {
    "prepare": {"cmd": "prepare", "deps": [entry("raw")], "outs": [entry("data.bin")]},
    "train": {
        "cmd": "train",
        "deps": [entry("src"), entry("data.bin"), entry("sets/one.yaml")],
        "params": {"params.yaml": {"lr": 0.001, "net": {"width": 8}}},
        "outs": [entry("weights.bin"), entry("metrics.json"), entry("noted")],
    },
    "evaluate": {"cmd": "evaluate", "deps": [entry("weights.bin")], "outs": [entry("plots")]},
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The toy pipeline in a repository, with the result of its code."""
    lock_text = json.dumps({"schema": "2.0", "stages": LOCK})
    return repository(tmp_path / "toy", {**FILES, "dvc.lock": lock_text}).folder


def test_a_result_of_what_is_there_passes(toy: Path) -> None:
    (toy / "src/deep/__pycache__").mkdir()
    (toy / "src/deep/__pycache__/b.pyc").write_text("bytecode")
    lock.check(toy)
    now = {stage.name: stage for stage in lock.pipeline(toy)}
    assert list(now) == ["prepare", "train", "evaluate"]
    assert now["train"].params == {"params.yaml": {"lr": 0.001, "net": {"width": 8}}}
    assert {path: out.kept_in for path, out in now["train"].outs.items()} == {
        "weights.bin": "cache",
        "metrics.json": "git",
        "noted": "",
    }
    assert lock.stale_reasons(list(now.values()), lock.read(toy)) == []


def test_a_clean_checkout_has_no_outs_of_the_cache(toy: Path) -> None:
    for name in ("data.bin", "weights.bin", "noted"):
        (toy / name).unlink()
    assert lock.stale_reasons(lock.pipeline(toy), lock.read(toy)) == []
    with pytest.raises(InputError, match=r"data\.bin is not there"):
        lock.check(toy)


def test_a_copy_without_git_is_read_too(toy: Path) -> None:
    shutil.rmtree(toy / ".git")
    lock.check(toy)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("src/a.py", "other", "stage train: src changed since"),
        ("src/new.py", "new", "stage train: src changed since"),
        ("sets/one.yaml", "a: 9", "stage train: sets/one.yaml changed since"),
        ("data.bin", "other", "stage train: data.bin changed since"),
        ("params.yaml", "name: one\nlr: 2e-3\nnet: {width: 8}\n", "stage train: lr is 0.002, was 0.001"),
        ("dvc.yaml", PIPELINE.replace("train:", "learn:"), "no stage train in dvc.yaml"),
        ("weights.bin", None, "weights.bin is not there"),
        ("metrics.json", "[]", "stage train: metrics.json is not what it wrote"),
        ("plots/one.png", "other", "stage evaluate: plots is not what it wrote"),
        ("plots/two.png", "new", "stage evaluate: plots is not what it wrote"),
        ("dvc.lock", json.dumps({"schema": "2.0", "stages": {"train": LOCK["train"]}}), "no stage evaluate"),
        ("dvc.lock", None, "no stage train"),
    ],
)
def test_each_change_makes_a_result_stale(toy: Path, name: str, text: str | None, found: str) -> None:
    if text is None:
        (toy / name).unlink()
    else:
        (toy / name).write_text(text)
    with pytest.raises(InputError) as caught:
        lock.check(toy)
    assert str(caught.value).startswith(f"dvc.lock: found {found}, expected ")


def test_what_no_maker_reads_changes_nothing(toy: Path) -> None:
    (toy / "raw").write_text("other")
    (toy / "sets/two.yaml").write_text("a: 9")
    (toy / "README.md").write_text("new")
    lock.check(toy)
    assert lock.stale_reasons(lock.pipeline(toy), lock.read(toy)) == ["stage prepare: raw changed since"]


@pytest.mark.parametrize("text", ["stages: [", "stages: hello", "stages: {train: {deps: [a]}}"])
def test_a_pipeline_that_dvc_cannot_read_is_an_error_of_one_line(toy: Path, text: str) -> None:
    (toy / "dvc.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^the pipeline: found .*dvc\.yaml.*, expected ") as caught:
        lock.pipeline(toy)
    assert "\n" not in str(caught.value)
    assert str(toy) not in str(caught.value)


@pytest.mark.parametrize("last", [[], [{"path": "noted", "md5": "0" * 31}]])
def test_a_lock_whose_last_entry_was_cut_off_is_found(last: list[dict[str, str]]) -> None:
    whole = [{"path": path, "md5": "0" * 32} for path in STAGE.outs]
    lock.check_whole({}, [STAGE])
    lock.check_whole({"train": {**ENTRY, "outs": whole}}, [STAGE])
    with pytest.raises(InputError, match="noted"):
        lock.check_whole({"train": {**ENTRY, "outs": [*whole[:-1], *last]}}, [STAGE])


def test_a_lock_that_was_cut_off_in_the_kind_of_a_hash_is_an_error_of_one_line(toy: Path) -> None:
    text = (toy / "dvc.lock").read_text()
    (toy / "dvc.lock").write_text(text.replace('"md5": ', '"hash": "m", "md5": ', 1))
    with pytest.raises(InputError, match="git checkout"):
        lock.pipeline(toy)
