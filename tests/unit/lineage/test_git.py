"""Git on small repositories."""

import subprocess
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import git
from tests.checkout import Repository, repository


def commit(folder: Path, text: str) -> str:
    (folder / "file").write_text(text)
    return Repository(folder).commit()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    made = repository(tmp_path / "origin", {"file": "one"})
    made.git("config", "uploadpack.allowAnySHA1InWant", "true")
    return made.folder


def clone(origin: Path, *options: str) -> Path:
    folder = origin.with_name("clone")
    git.text("clone", "-q", *options, origin.as_uri(), str(folder), folder=origin)
    return folder


def test_a_command_that_fails_is_an_error_of_one_line(origin: Path) -> None:
    with pytest.raises(InputError, match=r"^git rev-parse nothing: found fatal: .*, expected success$"):
        git.text("rev-parse", "nothing", folder=origin)
    assert git.text_or_empty("rev-parse", "nothing", folder=origin) == ""
    assert git.run("rev-parse", "nothing", folder=origin).returncode == 128


def test_the_environment_leads_to_no_other_repository(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert git.text("status", "--porcelain", folder=origin) == ""


def test_without_git_commands_fail(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(origin / "nothing"))
    assert git.text_or_empty("rev-parse", "HEAD", folder=origin) == ""
    with pytest.raises(InputError, match="git is not installed"):
        git.text("rev-parse", "HEAD", folder=origin)


def test_a_command_that_hangs_is_ended(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **options: float) -> None:
        raise subprocess.TimeoutExpired("git", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(InputError, match=r"^git fetch: found no answer in 120 s"):
        git.run("fetch", folder=origin)


def test_blobs_are_read_in_order(origin: Path) -> None:
    first = git.text("rev-parse", "HEAD", folder=origin)
    second = commit(origin, "two\n\0lines missing\n")
    names = [f"{second}:./file", f"{second}:./none", f"{first}:./file"]
    assert git.blobs(names, folder=origin) == [b"two\n\0lines missing\n", None, b"one"]
    assert git.blobs([], folder=origin) == []


def test_a_commit_has_many_names(origin: Path) -> None:
    head = git.text("rev-parse", "HEAD", folder=origin)
    Repository(origin).git("tag", "-a", "v1", "-m", "v1")
    git.text("update-ref", f"refs/exps/{'a' * 2}/{'b' * 38}/runny-jibe", "HEAD", folder=origin)
    for name in ("main", "HEAD", head, head[:7], "v1", "runny-jibe"):
        assert git.resolve(name, folder=origin) == head


def test_the_newest_experiment_of_a_name_is_meant(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = git.text("rev-parse", "HEAD", folder=origin)
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    old = Repository(origin).git("commit-tree", f"{new}^{{tree}}", "-m", "old")
    for baseline, experiment in (("aa/" + "b" * 38, new), ("cc/" + "d" * 38, old)):
        git.text("update-ref", f"refs/exps/{baseline}/twice", experiment, folder=origin)
    assert git.resolve("twice", folder=origin) == new


@pytest.mark.parametrize("name", ["", "nothing", "^main", "main:file", "f" * 40, "-x"])
def test_a_name_of_no_commit_is_an_error_of_one_line(origin: Path, name: str) -> None:
    here = clone(origin)
    refs = git.text("for-each-ref", folder=here)
    with pytest.raises(InputError, match=r"^revision.*: found .*, expected one that git or DVC knows$"):
        git.resolve(name, folder=here)
    assert git.text("for-each-ref", folder=here) == refs
    assert git.commit_here("nothing", folder=here) == ""


def test_a_name_is_no_option_of_git(origin: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(InputError):
        git.resolve(f"--upload-pack={tmp_path}/run", folder=clone(origin))
    assert not (tmp_path / "trace").exists()


def test_what_is_at_origin_alone_is_fetched_into_no_ref(origin: Path) -> None:
    here = clone(origin)
    git.text("checkout", "-qb", "new", folder=origin)
    new = commit(origin, "new")
    Repository(origin).git("tag", "-a", "v9", "-m", "v9")
    git.text("tag", "a-file", "HEAD:file", folder=origin)
    refs = git.text("for-each-ref", folder=here)
    assert git.resolve("origin/new", folder=here) == new
    assert git.resolve("new", folder=here) == git.resolve("v9", folder=here) == new
    with pytest.raises(InputError, match="it is no commit"):
        git.resolve("a-file", folder=here)
    assert git.text("for-each-ref", folder=here) == refs
    assert git.num_missing(new, "", folder=here) == 1
    assert git.num_missing("main", "HEAD", folder=here) == 0
    assert git.num_missing("nothing", "HEAD", folder=here) is None


def test_a_shallow_clone_stays_shallow_and_does_not_count(origin: Path) -> None:
    first = git.text("rev-parse", "HEAD", folder=origin)
    second = commit(origin, "two")
    commit(origin, "three")
    here = clone(origin, "--depth=1")
    assert git.commit_here(first, folder=here) == ""
    assert git.resolve(second, folder=here) == second
    assert git.commit_here(first, folder=here) == ""
    assert git.num_missing(second, "HEAD", folder=here) is None


def test_an_origin_that_does_not_answer_is_named(origin: Path) -> None:
    here = clone(origin)
    git.text("remote", "set-url", "origin", (origin.parent / "gone").as_uri(), folder=here)
    with pytest.raises(InputError, match=r"`git fetch origin new`: fatal: "):
        git.resolve("new", folder=here)
