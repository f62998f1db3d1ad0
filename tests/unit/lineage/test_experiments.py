"""Experiments, branches and their files, in a small repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import experiments, lock
from tests import checkout
from tests.conftest import MadeOnce
from tests.faults.mutations import BOMB

PIPELINE = """\
stages:
  make:
    cmd:
      - echo 1 > cached; echo 2 > committed.json; echo 3 > nowhere
      - mkdir -p folder/deep; echo 4 > folder/deep/a
    outs:
      - cached
      - folder
      - nowhere: {cache: false}
    metrics:
      - committed.json: {cache: false}
"""


@pytest.fixture(scope="session")
def reproduced(made_once: MadeOnce) -> Path:
    """A repository with a commit of what a pipeline made. Do not change it."""

    def make(folder: Path) -> None:
        checkout.initialise(folder)
        (folder / "dvc.yaml").write_text(PIPELINE)
        (folder / ".gitignore").write_text("cached\nfolder\nnowhere\n")
        subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, check=True)
        checkout.Repository(folder).commit()

    return made_once("reproduced", make)


def test_experiments_and_branches_are_listed_and_the_queue_of_dvc_is_not(
    reproduced: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(reproduced, tmp_path / "copy", symlinks=True)
    git = checkout.Repository(root).git
    head = git("rev-parse", "HEAD")
    experiment = git("commit-tree", "-p", "HEAD", "-m", "x", "HEAD^{tree}")
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/a/b", experiment)
    git("update-ref", "refs/exps/celery/stash", head)

    found = {one.name: one for one in experiments.every(root)}

    assert {name: (one.kind, one.commit, one.baseline) for name, one in found.items()} == {
        "main": ("branch", head, head),
        "a/b": ("experiment", experiment, head),
    }
    assert found["main"].time_ms == 1000 * int(git("show", "-s", "--format=%ct", head))


def restored(root: Path, folder: Path) -> set[str]:
    """Restore the one revision in `folder`; return the names of its files that are not git's or DVC's."""
    (revision,) = experiments.every(root)
    for place in (folder / "there", folder / "kept"):
        place.mkdir()
    experiments.restore(root, revision, folder / "there", kept=folder / "kept")
    return {path.name for path in (folder / "there").iterdir() if not path.name.startswith((".", "dvc."))}


def test_files_come_back_from_git_and_the_cache(reproduced: Path, tmp_path: Path) -> None:
    assert restored(reproduced, tmp_path) == {"cached", "committed.json", "folder"}
    assert (tmp_path / "there/cached").read_text() == "1\n"
    assert (tmp_path / "there/folder/deep/a").read_text() == "4\n"


def test_what_left_the_cache_is_an_error(reproduced: Path, tmp_path: Path) -> None:
    root = shutil.copytree(reproduced, tmp_path / "copy", symlinks=True)
    shutil.rmtree(root / ".dvc/cache")

    with pytest.raises(InputError, match=r"^cached: found nothing in DVC's cache"):
        restored(root, tmp_path)

    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dvc.yaml", "stages: ["),
        ("dvc.lock", "{schema: '2.0', stages: {make: }}"),
        ("params.yaml", f"a: {BOMB}"),  # DVC would read it for hours
    ],
)
def test_a_broken_revision_is_an_error_of_one_line(
    reproduced: Path, tmp_path: Path, name: str, text: str
) -> None:
    root = shutil.copytree(reproduced, tmp_path / "copy", symlinks=True)
    (root / name).write_text(text)
    checkout.Repository(root).commit()

    with pytest.raises(InputError, match=rf"^[^\n]*{name}[^\n]*$"):
        restored(root, tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_a_revision_whose_link_leaves_the_checkout_is_refused(
    reproduced: Path, tmp_path: Path, target: str
) -> None:
    root = shutil.copytree(reproduced, tmp_path / "copy", symlinks=True)
    (root / "link").symlink_to(target)
    checkout.Repository(root).commit()

    with pytest.raises(InputError, match=r"^commit [0-9a-f]{12}: .*'link'"):
        restored(root, tmp_path)


def test_the_checkout_may_be_a_subfolder_of_the_repository(reproduced: Path, tmp_path: Path) -> None:
    root = shutil.copytree(reproduced, tmp_path / "outer/sub", symlinks=True)
    (root / ".git").rename(root.parent / ".git")
    checkout.Repository(root.parent).commit()

    assert restored(root, tmp_path) == {"cached", "committed.json", "folder"}
    assert lock.pipeline(root)[0].outs["nowhere"].kept_in == ""
