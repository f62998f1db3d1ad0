"""What of a past commit comes back, in a repository made by hand."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import git, lock, revisions
from tests import checkout

PIPELINE = """\
stages:
  make:
    cmd: echo 1 > cached; echo 2 > told.json; echo 3 > nowhere
    outs:
      - cached
      - nowhere: {cache: false}
    metrics:
      - told.json: {cache: false}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a commit of a result."""
    folder = tmp_path_factory.mktemp("revisions") / "repository"
    checkout.initialise(folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("cached\nnowhere\n")
    subprocess.run(["dvc", "repro", "-q"], cwd=folder, check=True)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["add", "."], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def restored(made: Path, folder: Path) -> set[str]:
    """Lay out the one revision in `folder`; the names of what is there and not of git or DVC."""
    (revision,) = revisions.every(made)
    for place in (folder / "there", folder / "kept"):
        place.mkdir(exist_ok=True)
    revisions.restore(made, revision, folder / "there", kept=folder / "kept")
    return {path.name for path in (folder / "there").iterdir() if not path.name.startswith((".", "dvc."))}


def test_what_is_kept_comes_back_and_what_is_kept_nowhere_is_passed_over(made: Path, tmp_path: Path) -> None:
    assert "nowhere" in lock.digests(lock.locked(made)["make"], "outs")
    assert restored(made, tmp_path) == {"cached", "told.json"}
    assert (tmp_path / "there/cached").read_text() == "1\n"


def test_what_left_the_cache_is_a_line(made: Path, tmp_path: Path) -> None:
    cache = revisions.cache(made)
    cache.rename(tmp_path / "cache")
    try:
        with pytest.raises(InputError, match=r"^cached: found nothing in DVC's cache, expected it there"):
            restored(made, tmp_path)
    finally:
        (tmp_path / "cache").rename(cache)
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_repository_is_that_of_the_folder_in_a_hook_of_another(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    (revision,) = revisions.every(made)
    assert (revision.kind, revision.name) == ("branch", "main")
    assert restored(made, tmp_path) == {"cached", "told.json"}
    assert git.text("rev-parse", "--show-toplevel", folder=made) == os.fspath(made.resolve())


def test_a_pipeline_that_dvc_cannot_read_is_a_line(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(made, folder, symlinks=True)
    (folder / "dvc.yaml").write_text("stages: [")
    commit(folder)
    with pytest.raises(InputError, match=r"^dvc\.yaml: found .*, expected one that DVC can read$") as caught:
        restored(folder, tmp_path)
    assert "\n" not in str(caught.value)


MADE = "stages: {train: {cmd: x}, evaluate: {cmd: x}}"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, r"dvc\.lock: found no stage train"),
        ({"dvc.lock": "stages: {train: {cmd: x}}"}, r"dvc\.lock: found no stage evaluate"),
        ({"dvc.lock": "a: ["}, r"dvc\.lock: found no YAML"),
        ({"dvc.lock": "<<<<<<< ours"}, r"dvc\.lock: found str, expected keys and values"),
        ({"dvc.lock": MADE}, r"dvc\.lock: found stage train: its cmd is `None`, was `x`"),
        ({"dvc.lock": MADE, "dvc.yaml": "a: ["}, r"dvc\.yaml: found no YAML"),
        ({"dvc.lock": MADE, "params.yaml": "1"}, r"params\.yaml: found int, expected keys and values"),
    ],
)
def test_a_branch_without_a_result_is_a_line(tmp_path: Path, files: dict[str, str], line: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"^{line}") as caught:
        lock.check(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_git_refuses_is_a_line(made: Path) -> None:
    with pytest.raises(InputError, match=r"^git rev-parse nothing: found fatal: .*, expected success$"):
        git.text("rev-parse", "nothing", folder=made)
