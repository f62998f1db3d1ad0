"""Two branches that changed the result, merged as CONTRIBUTING.md shows.

The pipeline is a toy of two commands; `.gitattributes` and the configuration of DVC are the project's own.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mnist.lineage import lock
from tests import checkout
from tests.checkout import ROOT, Clone

# As people would copy them.
MERGE, REBASE = re.findall(r"^dvc repro && .*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)

PARAMS = """\
height: 1

# One line of comment on each side, so that git takes the two for different places.

width: 1
"""
PIPELINE = """\
stages:
  add:
    cmd: cat params.yaml > weights; echo "{\\"lines\\":$(grep -c . params.yaml)}" > metrics/add.json
    params: [height, width]
    outs: [weights]
    metrics:
      - metrics/add.json: {cache: false}
  draw:
    cmd: grep -v '#' weights > metrics/draw.png; printf '\\000\\001' >> metrics/draw.png
    deps: [weights, code]
    plots:
      - metrics/draw.png: {cache: false}
"""
# Values of other lengths: DVC writes git's index in a way by which git would take a file for unchanged that
# was written within a second of its checkout and is as long as before.
HIGH, WIDE = ("params.yaml", "height: 1", "height: 20"), ("params.yaml", "width: 1", "width: 20")
BOTH = ["height: 20", "width: 20"]
RESULT = {"dvc.lock", "metrics/add.json", "metrics/draw.png"}


class Toy(Clone):
    """A repository with a pipeline whose result is its params."""

    def shell(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-c", command, check=check)

    def branch(self, name: str, *edits: tuple[str, str, str]) -> None:
        """Make a branch of `main` with a commit that changes files, and its result."""
        self.shell(f"git checkout -q -b {name} main")
        for file, old, new in edits:
            checkout.edit(self, file, old, new)
        self.shell(
            f"dvc repro -q && git add . && git commit -q -m {name} --author '{name} <{name}@example.org>'"
        )

    def conflicts(self) -> set[str]:
        return set(self.shell("git diff --name-only --diff-filter=U").stdout.split())

    def check(self, drawn: list[str]) -> None:
        """The result is that of the commit, and all is committed."""
        assert [line for line in self.read("metrics/draw.png").splitlines() if ":" in line] == drawn
        assert self.shell("git status --porcelain").stdout == ""
        assert self.shell("dvc status").stdout == "Data and pipelines are up to date.\n"
        assert lock.stale_reasons(lock.pipeline(self.folder), lock.read(self.folder)) == []


def toy_at(folder: Path) -> Toy:
    # An editor that opens is a failure.
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_EDITOR": "false"}
    return Toy(folder=folder, environment={**checkout.environment(folder.parent), **alone})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = toy_at(tmp_path_factory.mktemp("merge") / "toy")
    (toy.folder / "metrics").mkdir(parents=True)
    for name, text in {"params.yaml": PARAMS, "dvc.yaml": PIPELINE, "code": "one\n\n\n\n\nfive\n"}.items():
        (toy.folder / name).write_text(text)
    shutil.copy(ROOT / ".gitattributes", toy.folder)
    toy.shell(
        "git init -q -b main && git config user.name t && git config user.email t@example.org && dvc init -q"
    )
    shutil.copy(ROOT / ".dvc/config", toy.folder / ".dvc")
    toy.shell("dvc repro -q && git add . && git commit -q -m Base")
    toy.branch("high", HIGH)
    toy.branch("wide", WIDE)
    return toy


@pytest.fixture
def toy(base: Toy, tmp_path: Path) -> Toy:
    """A copy on the branch `wide`; `high` changed another line of `params.yaml`."""
    shutil.copytree(base.folder, tmp_path / "toy")
    return toy_at(tmp_path / "toy")


def test_two_results_are_never_mixed_and_a_run_resolves_the_merge(toy: Toy) -> None:
    before = {name: (toy.folder / name).read_bytes() for name in RESULT}
    assert toy.shell("git merge high", check=False).returncode == 1
    assert toy.conflicts() == {"dvc.lock", "metrics/draw.png"}
    assert {name: (toy.folder / name).read_bytes() for name in RESULT} == before
    toy.shell(MERGE)
    toy.check(BOTH)
    assert toy.shell("git log -1 --format=%P").stdout.count(" ") == 1


def test_a_rebase_is_resolved_by_a_run_each_time_it_stops(toy: Toy) -> None:
    (toy.folder / "code").write_text("two\n")
    toy.shell("dvc repro -q && git commit -qam 'Another result'")
    toy.shell("git rebase high", check=False)
    assert toy.shell(REBASE, check=False).returncode == 1
    assert toy.conflicts() == {"dvc.lock"}
    toy.shell(REBASE)
    toy.check(BOTH)
    log = toy.shell("git log --format='%s %an' main..").stdout.splitlines()
    assert log == ["Another result t", "wide wide", "high high"]


def test_a_conflict_in_code_is_not_committed(toy: Toy) -> None:
    toy.branch("left", ("code", "one", "eins"), HIGH)
    toy.branch("right", ("code", "one", "hana!"), WIDE)
    toy.shell("git merge left", check=False)
    assert toy.shell(MERGE, check=False).returncode != 0
    assert toy.conflicts() == {"code"}
