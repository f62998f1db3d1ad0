"""Two branches that changed the result, merged as CONTRIBUTING.md shows.

The pipeline is a toy of two commands; `.gitattributes` and the configuration of DVC are the project's own.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist.lineage import lock
from tests.checkout import ROOT

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
STAGE = """\
  lines:
    cmd: wc -l < code > metrics/lines.txt
    deps: [code]
    outs:
      - metrics/lines.txt: {cache: false}
"""
# Values of other lengths: DVC writes git's index in a way by which git would take a file for unchanged that
# was written within a second of its checkout and is as long as before.
HIGH, WIDE = ("params.yaml", "height: 1", "height: 20"), ("params.yaml", "width: 1", "width: 20")
BOTH = ["height: 20", "width: 20"]
RESULT = {"dvc.lock", "metrics/add.json", "metrics/draw.png"}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A repository with a pipeline whose result is its params."""

    folder: Path

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT"))
        }
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_EDITOR": "false",  # an editor that opens is a failure
        }
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def branch(self, name: str, *edits: tuple[str, str, str]) -> None:
        """Make a branch of `main` with a commit that changes files, and its result."""
        self.run(f"git checkout -q -b {name} main")
        for file, old, new in edits:
            text = (self.folder / file).read_text()
            assert old in text
            (self.folder / file).write_text(text.replace(old, new, 1))
        self.run(
            f"dvc repro -q && git add . && git commit -q -m {name} --author '{name} <{name}@example.org>'"
        )

    def conflicts(self) -> set[str]:
        return set(self.run("git diff --name-only --diff-filter=U").stdout.split())

    def drawn(self) -> list[str]:
        return [line for line in (self.folder / "metrics/draw.png").read_text().splitlines() if ":" in line]

    def check(self) -> None:
        """The result is that of the commit, and all is committed."""
        assert self.run("git status --porcelain").stdout == ""
        assert self.run("dvc status").stdout == "Data and pipelines are up to date.\n"
        assert lock.stale_reasons(lock.pipeline(self.folder), lock.read(self.folder)) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(folder=tmp_path_factory.mktemp("merge") / "toy")
    (toy.folder / "metrics").mkdir(parents=True)
    for name, text in {"params.yaml": PARAMS, "dvc.yaml": PIPELINE, "code": "one\n\n\n\n\nfive\n"}.items():
        (toy.folder / name).write_text(text)
    shutil.copy(ROOT / ".gitattributes", toy.folder)
    toy.run(
        "git init -q -b main && git config user.name t && git config user.email t@example.org && dvc init -q"
    )
    shutil.copy(ROOT / ".dvc/config", toy.folder / ".dvc")
    toy.run("dvc repro -q && git add . && git commit -q -m Base")
    toy.branch("high", HIGH)
    toy.branch("wide", WIDE)
    return toy


@pytest.fixture
def toy(base: Toy, tmp_path: Path) -> Toy:
    """A copy on the branch `wide`; `high` changed another line of `params.yaml`."""
    shutil.copytree(base.folder, tmp_path / "toy")
    return Toy(folder=tmp_path / "toy")


def test_two_results_are_never_mixed_and_a_run_resolves_the_merge(toy: Toy) -> None:
    before = {name: (toy.folder / name).read_bytes() for name in RESULT}
    assert toy.run("git merge high", check=False).returncode == 1
    assert toy.conflicts() == {"dvc.lock", "metrics/draw.png"}
    assert {name: (toy.folder / name).read_bytes() for name in RESULT} == before
    toy.run(MERGE)
    toy.check()
    assert toy.drawn() == BOTH
    assert toy.run("git log -1 --format=%P").stdout.count(" ") == 1


def test_a_rebase_is_resolved_by_a_run_each_time_it_stops(toy: Toy) -> None:
    (toy.folder / "code").write_text("two\n")
    toy.run("dvc repro -q && git commit -qam 'Another result'")
    toy.run("git rebase high", check=False)
    assert toy.run(REBASE, check=False).returncode == 1
    assert toy.conflicts() == {"dvc.lock"}
    toy.run(REBASE)
    toy.check()
    assert toy.drawn() == BOTH
    log = toy.run("git log --format='%s %an' main..").stdout.splitlines()
    assert log == ["Another result t", "wide wide", "high high"]


def test_a_conflict_in_code_is_not_committed(toy: Toy) -> None:
    toy.branch("left", ("code", "one", "eins"), HIGH)
    toy.branch("right", ("code", "one", "hana!"), WIDE)
    toy.run("git merge left", check=False)
    assert toy.run(MERGE, check=False).returncode != 0
    assert toy.conflicts() == {"code"}


def test_a_stage_that_one_side_added_is_in_the_result(toy: Toy) -> None:
    toy.branch("more", ("dvc.yaml", "  draw:\n", f"{STAGE}  draw:\n"))
    toy.run("git merge high", check=False)
    assert "dvc.lock" in toy.conflicts()
    toy.run(MERGE)
    toy.check()
    assert toy.run("git ls-files metrics/lines.txt").stdout
    assert toy.drawn() == ["height: 20", "width: 1"]
