"""Two branches that changed the result, merged as CONTRIBUTING.md says.

What git does with such files is tried on a pipeline of two commands, with the project's own
`.gitattributes`; the project itself is merged once, on the small data.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist.lineage import lock
from tests import checkout
from tests.checkout import ROOT, edit
from tests.conftest import SmallData

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
AUTHOR = ["-c", "user.name=t", "-c", "user.email=t@example.org"]


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
            "GIT_EDITOR": "false",  # nobody is asked anything
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
        """A branch of `main` with a commit that changed files, and its result."""
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
        assert lock.doubts(lock.pipeline(self.folder), lock.locked(self.folder)) == []


# Texts of other lengths: DVC writes git's index in a way by which git would take a file for unchanged that
# was written within a second of its checkout and is as long as before.
HIGH, WIDE = ("params.yaml", "height: 1", "height: 20"), ("params.yaml", "width: 1", "width: 20")
BOTH = ["height: 20", "width: 20"]
RESULT = {"dvc.lock", "metrics/add.json", "metrics/draw.png"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
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
    yield toy
    shutil.rmtree(toy.folder.parent)


@pytest.fixture
def toy(base: Toy, tmp_path: Path) -> Toy:
    """A copy on the branch `wide`; `high` changed another line of `params.yaml`."""
    shutil.copytree(base.folder, tmp_path / "toy")
    return Toy(folder=tmp_path / "toy")


def test_two_results_are_never_mixed(toy: Toy) -> None:
    before = {name: (toy.folder / name).read_bytes() for name in RESULT}
    assert toy.run("git merge high", check=False).returncode == 1
    # Not even the metric that is the same, or the lines that only one side changed.
    assert toy.conflicts() == {"dvc.lock", "metrics/draw.png"}
    assert {name: (toy.folder / name).read_bytes() for name in RESULT} == before


def test_a_merge_is_resolved_by_a_run(toy: Toy) -> None:
    toy.run("git merge high", check=False)
    toy.run(MERGE)
    toy.check()
    assert toy.drawn() == BOTH
    assert toy.run("git log -1 --format=%P").stdout.count(" ") == 1
    assert "<<<" not in (toy.folder / "dvc.lock").read_text()


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
    assert toy.run("git symbolic-ref --short HEAD").stdout == "wide\n"


def test_one_param_that_both_changed_is_for_a_person(toy: Toy) -> None:
    toy.branch("higher", ("params.yaml", "height: 1", "height: 300"))
    toy.run("git merge high", check=False)
    assert toy.run(MERGE, check=False).returncode != 0  # DVC cannot read it
    assert "params.yaml" in toy.conflicts()
    (toy.folder / "params.yaml").write_text(PARAMS.replace("height: 1", "height: 4000"))
    assert toy.run(MERGE, check=False).returncode != 0  # git was not told that it is resolved
    toy.run("git add params.yaml")
    toy.run(MERGE)
    toy.check()
    assert toy.drawn() == ["height: 4000", "width: 1"]


def test_other_conflicts_are_not_committed_by_the_way(toy: Toy) -> None:
    toy.branch("left", ("code", "one", "eins"), HIGH)
    toy.branch("right", ("code", "one", "hana!"), WIDE)
    toy.run("git merge left", check=False)
    done = toy.run(MERGE, check=False)
    assert done.returncode != 0
    assert toy.conflicts() == {"code"}
    assert "unmerged" in done.stderr


def test_different_code_with_the_same_metrics_is_run_all_the_same(toy: Toy) -> None:
    toy.branch("left", ("code", "one", "eins"))
    toy.branch("right", ("code", "five", "cinque"))
    toy.run("git merge left", check=False)
    assert toy.conflicts() == {"dvc.lock"}
    toy.run(MERGE)
    toy.check()
    assert (toy.folder / "code").read_text() == "eins\n\n\n\n\ncinque\n"


def test_rerere_does_not_bring_back_a_result_of_other_days(toy: Toy) -> None:
    toy.run("git config rerere.enabled true && git config rerere.autoupdate true")
    toy.run("git merge high", check=False)
    toy.run(MERGE)
    toy.run("git reset -q --hard HEAD^")
    toy.run("git merge high", check=False)
    assert toy.conflicts() == {"dvc.lock", "metrics/draw.png"}
    toy.run(MERGE)
    toy.check()


LINES = "  lines:\n    cmd: wc -l < code > metrics/lines.txt\n    deps: [code]\n    outs:\n"
STAGE = f"{LINES}      - metrics/lines.txt: {{cache: false}}\n"


@pytest.mark.parametrize("ours", ["more", "high"])
def test_a_stage_and_metric_that_one_side_added_is_in_the_result(toy: Toy, ours: str) -> None:
    toy.branch("more", ("dvc.yaml", "  draw:\n", f"{STAGE}  draw:\n"))
    toy.run(f"git checkout -q {ours} && git merge {'high' if ours == 'more' else 'more'}", check=False)
    assert "dvc.lock" in toy.conflicts()
    toy.run(MERGE)
    toy.check()
    assert toy.run("git ls-files metrics/lines.txt").stdout
    assert toy.drawn() == ["height: 20", "width: 1"]


@pytest.mark.parametrize("ours", ["less", "high"])
def test_a_metric_that_one_side_deleted_is_removed_by_hand(toy: Toy, ours: str) -> None:
    toy.run("git checkout -q -b less main && git rm -q metrics/draw.png")
    for name in ("dvc.yaml", "dvc.lock"):
        text = (toy.folder / name).read_text()
        kept = re.sub(r"^  draw:\n(    .*\n)*", "", text, flags=re.MULTILINE)
        assert kept != text
        (toy.folder / name).write_text(kept)
    toy.run("git commit -qam less")
    toy.run(f"git checkout -q {ours} && git merge {'high' if ours == 'less' else 'less'}", check=False)
    assert toy.conflicts() == {"dvc.lock", "metrics/add.json", "metrics/draw.png"} & toy.conflicts()
    toy.run(f"git rm -q metrics/draw.png && {MERGE}")
    made = lock.locked(toy.folder)
    left = lock.doubts(lock.pipeline(toy.folder), made)
    # Where `dvc.lock` is that of the side with the stage, it is named; DVC leaves it there.
    assert left == (["stage draw: in dvc.lock, not in dvc.yaml: delete its lines"] if ours == "high" else [])


def test_the_project_is_merged_so(small_data: SmallData, tmp_path: Path) -> None:
    clone = checkout.clone(tmp_path / "pipeline", small_data)
    edit(clone, "params.yaml", "epochs: 4", "epochs: 1")
    edit(clone, "params.yaml", "min_accuracy: 0.5", "min_accuracy: 1.0")  # to register takes seconds
    clone.commit("Learn little, register nothing")
    clone.dvc("repro", "evaluate")
    clone.commit("What the pipeline made")
    clone.environment |= {
        f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    for name, old, new in (("lr", "lr: 0.02", "lr: 0.025"), ("features", "n_features: 6", "n_features: 10")):
        clone.run("git", "checkout", "-q", "-b", name, "main")
        edit(clone, "params.yaml", old, new)
        assert clone.dvc("repro", "evaluate") == ["train", "evaluate"]
        clone.commit(name)

    assert clone.run("git", "merge", "lr", check=False).returncode == 1
    assert "metrics/test.json" in clone.run("git", "diff", "--name-only", "--diff-filter=U").stdout
    merged = clone.run("bash", "-c", MERGE).stdout
    assert [stage for stage in checkout.STAGES if f"> python -m stages.{stage}" in merged] == [
        "train",
        "evaluate",
        "register",
    ]

    assert clone.run("git", "status", "--porcelain").stdout == ""
    made = lock.locked(clone.folder)["train"]["params"]["params.yaml"]
    assert (made["lr"], made["n_features"]) == (0.025, 10)
    (run,) = (
        run
        for run in clone.runs()
        if run.data.params["lr"] == "0.025" and run.data.params["n_features"] == "10"
    )
    assert run.data.tags["mlflow.source.git.commit"] == clone.run("git", "rev-parse", "HEAD^1").stdout.strip()
    verified = clone.run("python", "-m", "mnist.cli.verify").stdout
    assert (
        verified.splitlines()[-1] == "holds: the committed code makes every committed output, byte for byte"
    )
