"""docs/troubleshooting.md: each message is what the code prints, and each remedy helps.

An entry is a block of `text`, the message, and the blocks of `sh` up to the next one, the remedy.
For each there is a case below, in which the message is made to appear in a copy of a small clone;
an entry without a case, and a case without an entry, are failures.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl
import pytest

from tests import checkout, pages
from tests.checkout import Clone
from tests.conftest import SmallData

PAGE = "docs/troubleshooting.md"
MARK = "----- the remedy"
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
PATIENCE_SECONDS = 180


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Of the page: a message, in which `...` stands for anything, and the commands that mend it."""

    message: str
    remedy: tuple[str, ...]

    @property
    def pattern(self) -> re.Pattern[str]:
        """That finds it in what is printed."""
        return re.compile(".*".join(map(re.escape, self.message.rstrip("\n").split("..."))))


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a message comes about, in bash.

    Attributes:
        made: lines that print it.
        mended: a line that succeeds after the remedy, and does not print it any more; empty where the
            remedy's own success is all there is to see.
    """

    made: str
    mended: str = ""


def entries() -> list[Entry]:
    """All of the page."""
    found: list[Entry] = []
    for block in pages.blocks(PAGE):
        if block.language == "text":
            found.append(Entry(message=block.text, remedy=()))
        elif block.language == "sh":
            last = found.pop()
            found.append(Entry(message=last.message, remedy=(*last.remedy, *pages.commands(block.text))))
    return found


def param(key: str, value: str, file: str = "params.yaml") -> str:
    """Set a param, at the top of the file or in a section."""
    return f"perl -pi -e 's/^( *){key}:.*/$1{key}: {value}/' {file}"


MORE_IMAGES = param("num_train", "60000", "datasets.yaml")
TAKEN = """python - <<'PYTHON'
import socket, subprocess
with socket.create_server(("127.0.0.1", 0)) as taken:
    subprocess.run({command}.format(port=taken.getsockname()[1]), shell=True)
PYTHON"""

# By a part of the message that no other has.
CASES = {
    "is Python 3.9": Case(
        made="""cat > old <<'SCRIPT'
#!/bin/bash
exec python -c 'import sys; sys.version_info, sys.version = (3, 9, 2), "3.9.2 (old)"; exec(sys.argv[1])' "$2"
SCRIPT
chmod +x old; rm -r .venv; make PYTHON=./old setup"""
    ),
    "not inside of a DVC": Case(made="cd .. && dvc repro"),
    "dubious ownership": Case(
        made="GIT_TEST_ASSUME_DIFFERENT_OWNER=1 git status",
        mended="GIT_TEST_ASSUME_DIFFERENT_OWNER=1 git status",
    ),
    "Git user name": Case(
        made="rm ~/.gitconfig; echo >> params.yaml; dvc exp run --queue -S lr=0.03",
        mended="dvc exp run --queue -S lr=0.03",
    ),
    "No space left": Case(made="python -m mnist.cli.diff --output /dev/full"),
    "no mirror gave": Case(
        made="rm -r .cache; perl -pi -e 's#- /.*#- /nowhere#' params.yaml; python -m stages.download"
    ),
    "found data that break": Case(made=f"{MORE_IMAGES}; dvc repro validate"),
    "found bad data": Case(made=f"{MORE_IMAGES}; dvc repro validate; python -m stages.stats"),
    "a verdict on other data": Case(
        made="""perl -pi -e 's/(dataset_sha256": ").{5}/${1}00000/' metrics/validation.json
python -m stages.stats""",
        mended="python -m stages.stats",
    ),
    "the output of an earlier stage": Case(made="rm models/model.safetensors; python -m stages.evaluate"),
    "greater than or equal to 1": Case(
        made=f"{param('batch_size', '0')}; python -m stages.stats; python -m stages.train",
        mended="dvc status",
    ),
    "found nothing, expected a value": Case(
        made="perl -pi -e 's/^lr:/learning_rate:/' params.yaml; python -m stages.train"
    ),
    "are missing from 'datasets.yaml'": Case(made=f"{param('dataset', 'fasion_mnist')}; dvc repro"),
    "Could not find 'dataset'": Case(made="perl -ni -e 'print unless /^dataset:/' params.yaml; dvc repro"),
    "Could not override": Case(made="dvc exp run -S Lr=0.05"),
    "Sweep overrides": Case(made="dvc exp run -S lr=0.01,0.05"),
    "found cuda": Case(made=f"{param('device', 'cuda')}; CUDA_VISIBLE_DEVICES= python -m stages.train"),
    "found tf32": Case(made=f"{param('precision', 'tf32')}; CUDA_VISIBLE_DEVICES= python -m stages.train"),
    "4 for each of its cores": Case(made=f"{param('processes', '4096')}; python -m stages.train"),
    "a loss of": Case(made=f"{param('lr', '1e9')}; python -m stages.train"),
    "found no preset": Case(made="make preset NAME=quik"),
    "Unable to acquire lock": Case(
        made="""python -c 'import fcntl, subprocess
with open(".dvc/tmp/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    subprocess.run(["dvc", "repro"])'"""
    ),
    "is busy": Case(
        made="""python -c 'import json, os, subprocess
held = {"write": {os.path.abspath("data/stats.json"): {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}}
with open(".dvc/tmp/rwlock", "w") as file:
    json.dump(held, file)
subprocess.run(["dvc", "repro", "--force", "--single-item", "stats"])'"""
    ),
    "unsaved files": Case(made="echo edited >> data/stats.json; dvc checkout", mended="dvc status"),
    "Checkout failed": Case(
        made="""python -c 'import hashlib
from pathlib import Path
digest = hashlib.md5(Path("data/stats.json").read_bytes()).hexdigest()
Path(".dvc/cache/files/md5", digest[:2], digest[2:]).unlink()
Path("data/stats.json").unlink()'
dvc checkout""",
        mended="dvc checkout",
    ),
    "no remote specified": Case(made="dvc push"),
    "requires 'dvc-s3'": Case(made="dvc remote add -d storage s3://bucket/path; dvc push"),
    "conflicts with existing": Case(
        made="""head=$(git rev-parse HEAD)
git update-ref "refs/exps/${head:0:2}/${head:2}/mine" "$(git commit-tree -p HEAD -m mine HEAD^{tree})"
dvc exp run --queue -n mine -S lr=0.03"""
    ),
    "does not appear to be an experiment": Case(made="dvc exp apply nothing-such"),
    "no experiment of HEAD": Case(made="make best"),
    "it failed,": Case(
        made="""python -c 'from mnist.lineage import experiments
found = experiments.Sweep(head="", revisions=(), failed=("doomed",), num_queued=0, num_running=0)
print(*experiments.failures(found))'"""
    ),
    "what it missed waits": Case(
        made=f"MLFLOW_TRACKING_URI={NOWHERE} python -m stages.train", mended='test -z "$(ls mlspool)"'
    ),
    "ERROR: MLflow at ... does not answer": Case(
        made=f"export MLFLOW_TRACKING_URI={NOWHERE}; python -m mnist.cli.promote --dry-run",
        mended="python -m mnist.cli.promote --dry-run",
    ),
    "(not shown)": Case(made="MLFLOW_TRACKING_URI=127.0.0.1:5000 python -m mnist.cli.promote"),
    "ModuleNotFoundError": Case(
        made="MLFLOW_TRACKING_URI=mysql://x@127.0.0.1:9/m python -m mnist.cli.promote"
    ),
    "a deleted one": Case(
        made="mlflow experiments delete --experiment-id 1; python -m mnist.cli.promote --dry-run",
        mended="python -m mnist.cli.promote --dry-run",
    ),
    "[Errno 98]": Case(made=TAKEN.format(command='"make ui PORT={port}"')),
    "not registered": Case(made=f"{param('min_accuracy', '1.0')}; python -m stages.register"),
    "no such model": Case(
        made="export MLFLOW_TRACKING_URI=sqlite:///new.db; python -m mnist.cli.promote",
        mended="python -m mnist.cli.promote --dry-run",
    ),
    "no champion yet": Case(made="python -m mnist.cli.serve --port 0"),
    "is below registry.min_accuracy": Case(
        made=f"{param('min_accuracy', '1.0')}; python -m mnist.cli.promote"
    ),
    "worse than the champion": Case(
        made="""python -c 'import numpy as np
from mnist.tracking import promotion
from mnist.evaluation.statistics import Predictions
labels_N = np.arange(100) % 10
def model(version, num_wrong):
    predicted_N = labels_N.copy()
    predicted_N[:num_wrong] = (labels_N[:num_wrong] + 1) % 10
    predictions = Predictions(labels_N=labels_N, predicted_N=predicted_N)
    tags = {"test_sha256": "the same"}
    return promotion.Model(
        version=version, weights_sha256=version, run_id=version, tags=tags, predictions=predictions
    )
decision = promotion.decide(model("2", 20), model("1", 2), min_accuracy=0.5, alpha=0.05)
print(f"  decision    {decision.outcome}: {decision.reason}")'"""
    ),
    "no champion before it": Case(made="python -m mnist.cli.promote; python -m mnist.cli.promote --rollback"),
    "expected a free one": Case(made=TAKEN.format(command='"python -m mnist.cli.serve --port {port}"')),
    "not scaled": Case(
        made="""python -c 'import json
from mnist.cli import serve
body = json.dumps({"inputs": [[[0.5] * 28] * 28]}).encode()
try:
    serve.checked(body, path=serve.INVOCATIONS, content_type="application/json")
except serve.RefusedError as error:
    print(serve._reason("BAD_REQUEST", str(error)).decode())'"""
    ),
    "no such experiment or finished run": Case(made="make reproduce MODEL=nothing-such"),
    "no such commit, branch": Case(
        made="git clone -q --depth 1 file://$PWD ../new; cd ../new; python -m mnist.cli.diff HEAD~1",
        mended="git rev-parse HEAD~1",
    ),
    "changes that are not committed": Case(
        made="echo >> params.yaml; make verify", mended="git diff --exit-code"
    ),
    "NO  stage": Case(
        made="""echo >> stages/stats.py; python -c 'from pathlib import Path
from mnist.lineage import lock
stages, locked = lock.pipeline(Path()), lock.locked(Path())
print(*(f"  NO  {doubt}" for doubt in lock.doubts(stages, locked)))'""",
        mended="dvc status",
    ),
}
ON_THIS_MACHINE_ONLY = {
    "No space left": (Path("/dev/full").exists(), "no disk that is full"),
    "[Errno 98]": (sys.platform == "linux", "another number here"),
    "requires 'dvc-s3'": (find_spec("dvc_s3") is None, "it is installed here"),
}


@pytest.fixture(scope="module")
def made(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with a result, which is not the best that there could be."""
    clone = checkout.clone(tmp_path_factory.mktemp("trouble") / "clone", small_data)
    checkout.set_up(clone)
    checkout.edit(clone, "params.yaml", "epochs: 4", "epochs: 1")
    clone.dvc("repro")
    clone.commit("What the pipeline made")
    yield clone
    shutil.rmtree(clone.folder.parent, ignore_errors=True)


def test_each_entry_has_a_case_and_each_case_an_entry() -> None:
    for entry in entries():
        assert sum(part in entry.message for part in CASES) == 1, f"{entry.message}has no case, or several"
    for part in CASES:
        assert sum(part in entry.message for entry in entries()) == 1, (
            f"no entry has `{part}`, or several have"
        )


@pytest.mark.parametrize("part", CASES)
def test_the_message_is_what_is_printed_and_the_remedy_helps(
    part: str, made: Clone, small_data: SmallData, tmp_path: Path
) -> None:
    is_here, why = ON_THIS_MACHINE_ONLY.get(part, (True, ""))
    if not is_here:
        pytest.skip(why)
    (entry,) = (entry for entry in entries() if part in entry.message)
    case = CASES[part]
    shutil.copytree(made.folder, tmp_path / "clone", symlinks=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\nname = t\nemail = t@example.org\n")
    remedy = [line.replace("/that/folder", str(small_data.mirror)) for line in entry.remedy]
    lines = [case.made, f"echo '{MARK}'", *(f"{line} || exit 9" for line in remedy), case.mended or "true"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path / "clone",
        env={**made.environment, "HOME": str(home), "MPLCONFIGDIR": mpl.get_cachedir()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    before, _, after = done.stdout.partition(f"{MARK}\n")
    assert entry.pattern.search(before), f"{entry.message}is not what is printed:\n{before}"
    assert "Traceback" not in done.stdout, done.stdout
    assert done.returncode == 0, f"the remedy fails:\n{after}"
    if case.mended:
        assert not entry.pattern.search(after), after
