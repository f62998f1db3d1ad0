"""`python -m mnist.cli.reproduce` on a checkout with real runs: each kind of run, and each way to fail.

The tests that share the checkout run in their order.
"""

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from mnist.cli import reproduce
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data import download
from mnist.lineage import guarantee, sandbox
from mnist.lineage.guarantee import Record, Result
from mnist.tracking import client
from tests import checkout
from tests.checkout import NAME, STAGES, Clone, edit, processes_in
from tests.conftest import SmallData

DEADLINE_SECONDS = 120
OF_A_RUN = {"fingerprint": "f" * 64, "weights_sha256": "a" * 64, "dataset_sha256": "d" * 64}


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A checkout with three runs: of a clean commit, of an edited tree, and of a temporary one.

    The edited tree is the workspace; its run is the challenger, and `dvc.yaml` names two files of
    it that git does not know.
    """

    clone: Clone
    clean: Run
    edited: Run
    aside: Run
    temporary: Path

    def start(self, model: str, **environment: str) -> subprocess.Popen[str]:
        # torch makes a folder for its compiler's cache, one for all of a user's processes, which stays.
        folders = {
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self.temporary.with_name("torchinductor")),
        }
        return self.clone.start(sys.executable, "-m", "mnist.cli.reproduce", model, **folders, **environment)

    def workspace(self) -> dict[str, Any]:
        """All that a reproduction must leave as it is."""
        folder = self.clone.folder
        git = {
            " ".join(question): self.clone.run("git", *question).stdout
            for question in (
                ["status", "--porcelain"],
                ["diff", "--binary", "HEAD"],
                ["ls-files", "--stage"],
                ["for-each-ref"],
                ["worktree", "list"],
                ["stash", "list"],
                ["symbolic-ref", "HEAD"],
                ["config", "--local", "--list"],
            )
        }
        passing = (".git", "__pycache__", "mlflow.db", "mlflow.lock")
        files = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(passing) for part in path.relative_to(folder).parts)
        }
        runs = self.clone.client.search_runs(["1"])
        return {**git, **files, "runs": sorted((run.info.run_id, str(run.data.tags)) for run in runs)}


@pytest.fixture(scope="module")
def desk(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Made once; without a champion."""
    folder = tmp_path_factory.mktemp("lineage")
    clone = checkout.clone(folder / "pipeline", small_data)
    # To register takes seconds: only the edited tree does.
    edit(clone, "params.yaml", "min_accuracy: 0.5", "min_accuracy: 1.0")
    edit(clone, "params.yaml", "epochs: 4", "epochs: 2")
    clone.commit("Learn little, register nothing")
    clone.dvc("repro")
    clone.commit("What the pipeline made")
    (clean,) = clone.runs()
    clone.dvc("exp", "run", "--temp", "-S", "lr=0.015", "-n", "aside")
    aside = clone.runs()[0]

    # Another seed by way of new files, which are in `dvc.yaml` and not in git; one is no text.
    (clone.folder / "mnist/shift.bin").write_bytes(b"\x00\xff\xfe\x07")
    (clone.folder / "mnist/shift.py").write_text(
        "from pathlib import Path\n\nSHIFT = Path(__file__).with_suffix('.bin').read_bytes()[-1]\n"
    )
    edit(clone, "stages/train.py", "= params.seed,", "= params.seed + shift.SHIFT,")
    edit(
        clone,
        "stages/train.py",
        "from mnist import dataset as data",
        "from mnist import dataset as data, shift",
    )
    deps = "      - mnist/tracking/events.py\n"
    edit(clone, "dvc.yaml", deps, f"{deps}      - mnist/shift.py\n      - mnist/shift.bin\n")
    edit(clone, "params.yaml", "min_accuracy: 1.0", "min_accuracy: 0.0")
    clone.dvc("repro")
    edited = clone.runs()[0]
    # What is no part of any run: it must stay, and must not be in the way.
    (clone.folder / "notes.txt").write_text("mine\n")
    edit(clone, "mnist/evaluation/scores.py", "NUM_BINS = 15", "NUM_BINS = 14")
    clone.run("git", "add", "notes.txt")
    temporary = folder / "temporary"
    temporary.mkdir()
    yield Desk(clone=clone, clean=clean, edited=edited, aside=aside, temporary=temporary)
    for process in processes_in(temporary):  # where a test failed
        process.kill()
    shutil.rmtree(folder)


def answers(output: str) -> dict[str, str]:
    """The last column of the table, by the first."""
    lines = output.partition("\nwhat ")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[-1] for row in rows}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What three reproductions at once came to, and the workspace before and after."""

    alias: subprocess.CompletedProcess[str]
    experiment: subprocess.CompletedProcess[str]
    false: subprocess.CompletedProcess[str]
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module")
def done(desk: Desk) -> Done:
    """Of the challenger; of an experiment, on another machine; of a run whose tag is false."""
    run_id, weights = desk.clean.info.run_id, desk.clean.data.tags["weights_sha256"]
    desk.clone.client.set_tag(run_id, "weights_sha256", "0" * 64)
    before = desk.workspace()
    # The user's own store, which no stage may be told of.
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{desk.clone.folder}/mlflow.db"}
    # Other instructions for PyTorch and for oneDNN: another machine, as far as rounding goes.
    elsewhere = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    started = {
        "alias": desk.start(f"models:/{NAME}@challenger", **store),
        "experiment": desk.start("aside", **elsewhere),
        "false": desk.start(run_id),
    }
    outputs = {what: process.communicate()[0] for what, process in started.items()}
    results = {
        what: subprocess.CompletedProcess([], process.returncode, outputs[what])
        for what, process in started.items()
    }
    after = desk.workspace()
    desk.clone.client.set_tag(run_id, "weights_sha256", weights)
    return Done(**results, before=before, after=after)


def test_the_workspace_stays_as_it_was(desk: Desk, done: Done) -> None:
    assert " M stages/train.py" in done.before["status --porcelain"]
    assert "A  notes.txt" in done.before["status --porcelain"]
    assert done.after == done.before
    assert list(desk.temporary.iterdir()) == []


@pytest.mark.parametrize("what", ["alias", "experiment", "false"])
def test_every_stage_but_register_computes(done: Done, what: str) -> None:
    output = getattr(done, what).stdout
    assert [stage for stage in STAGES if f"> python -m stages.{stage}" in output] == STAGES[:-1]
    assert "4 files from the cache" in output  # of the user's own downloads
    assert "Traceback" not in output
    assert "leaked" not in output


def test_edits_that_were_not_committed_are_made_again_byte_for_byte(desk: Desk, done: Done) -> None:
    weights = [run.data.tags["weights_sha256"] for run in (desk.clean, desk.edited, desk.aside)]
    assert len(set(weights)) == 3  # so neither the edits nor the params of an experiment may be lost
    output = done.alias.stdout
    assert done.alias.returncode == 0, output
    assert f"({desk.edited.info.run_id}), models:/{NAME}/1" in output
    assert f"commit {desk.edited.data.tags['mlflow.source.git.commit'][:12]}, its dirty.patch" in output
    assert "promised: equal bytes, equal metrics (device CPU" in output
    assert set(answers(output).values()) == {"yes"}
    assert answers(output)[guarantee.ACCURACY] == "yes"
    assert answers(output)[f"tensors inside models:/{NAME}/1"] == "yes"
    last = "reproduced: byte for byte the same weights, and the same metrics"
    assert output.splitlines()[-1] == last


def test_on_other_instructions_an_experiment_is_held_to_its_accuracy(desk: Desk, done: Done) -> None:
    output = done.experiment.stdout
    assert done.experiment.returncode == 0, output
    assert desk.aside.info.run_id in output
    assert answers(output)["fingerprint of the training"] == "yes"
    assert output.splitlines()[-1].startswith("reproduced")
    if "(DEFAULT)" not in desk.aside.data.tags["device"]:
        assert "promised: a test accuracy within 1 point, not equal bytes (device CPU" in output
        assert "DEFAULT), 1 thread here" in output


def test_a_false_tag_fails_and_is_named(done: Done) -> None:
    output = done.false.stdout
    assert done.false.returncode == 1, output
    unequal = {what: answer for what, answer in answers(output).items() if answer != "yes"}
    assert unequal == {"models/model.safetensors, tag of the run": "NO"}
    assert answers(output)["models/model.safetensors, file of the run"] == "yes"
    last = "not reproduced: the record contradicts itself, models/model.safetensors, tag of the run"
    assert output.splitlines()[-1] == last


def test_a_request_to_stop_leaves_nothing_behind(desk: Desk) -> None:
    client, commit = desk.clone.client, desk.clean.data.tags["mlflow.source.git.commit"]
    run_id = client.create_run("1", tags={**OF_A_RUN, "mlflow.source.git.commit": commit}).info.run_id
    endless = desk.clone.run("git", "show", "HEAD:params.yaml").stdout.replace("epochs: 2 ", "epochs: 99999 ")
    client.log_text(run_id, endless, "params.yaml")
    client.set_terminated(run_id)
    before = desk.workspace()
    process = desk.start(run_id)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(
        len(path.read_text().splitlines()) > 1 for path in desk.temporary.glob("*/checkout/metrics/steps.csv")
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert processes_in(desk.temporary)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, output
    assert "epochs 2 -> 99999" in output
    assert output.splitlines()[-1] == "interrupted"
    while processes_in(desk.temporary):  # the sender of a training that was killed sees it at its own pace
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(desk.temporary.iterdir()) == []
    assert desk.workspace() == before
    client.delete_run(run_id)


@pytest.fixture
def here(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """This process works in the checkout."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", download.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(desk.clone.folder)
    return desk


def test_a_run_has_many_names(here: Desk) -> None:
    store = client.connect()
    run_id = here.edited.info.run_id
    for name in (f"models:/{NAME}@challenger", f"models:/{NAME}/1", run_id, run_id[:12]):
        assert reproduce.find(store, name).run.info.run_id == run_id
    store.client.set_tag(here.aside.info.run_id, "dvc.experiments", "aside as-ide")
    assert reproduce.find(store, "as-ide").run.info.run_id == here.aside.info.run_id


@pytest.mark.usefixtures("here")
def test_the_start_of_several_run_ids_names_none_of_them() -> None:
    store = client.connect()
    made = [store.client.create_run(store.experiment_id).info.run_id for _ in range(17)]  # of 16 digits
    for run_id in made:
        store.client.set_terminated(run_id)
    digit = Counter(run_id[0] for run_id in made).most_common(1)[0][0]
    with pytest.raises(InputError, match=f"{digit} in MLflow at .*: found [0-9]+ runs whose id begins so"):
        reproduce.find(store, digit)
    for run_id in made:
        store.client.delete_run(run_id)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("side", ["no such experiment", "aside", f"models:/{NAME}@challenger"]),  # a part of a name is none
        ("0" * 32, ["no such experiment", "aside"]),
        ("", ["no such experiment"]),
        ("it's", ["no such experiment"]),
        ("models:/nothing@champion", ["no such model", NAME]),
        (f"models:/{NAME}@champion", ["no such version", f"models:/{NAME}@challenger, models:/{NAME}/1"]),
        (f"models:/{NAME}/9", ["no such version", f"models:/{NAME}/1"]),
        (f"models:/{NAME}", ["no alias or version"]),
    ],
)
def test_what_is_not_there_is_a_line_with_what_is(model: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        reproduce.find(client.connect(), model)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_run_that_is_gone_or_not_finished_is_refused(here: Desk) -> None:
    store = client.connect()
    failed = store.client.create_run(store.experiment_id, run_name="broken")
    store.client.set_terminated(failed.info.run_id, "FAILED")
    with pytest.raises(InputError, match="found one that is FAILED, expected a finished run"):
        reproduce.find(store, failed.info.run_id)
    run_id = here.edited.info.run_id
    store.client.delete_run(run_id)
    with pytest.raises(InputError, match="found a deleted one"):
        reproduce.find(store, run_id)
    with pytest.raises(InputError, match=f"run {run_id} of version 1 is gone"):
        reproduce.find(store, f"models:/{NAME}/1")
    tags = {"weights_sha256": here.edited.data.tags["weights_sha256"]}
    other = store.client.create_run(store.experiment_id, tags=tags)
    store.client.set_terminated(other.info.run_id)
    assert reproduce.find(store, f"models:/{NAME}/1").run.info.run_id == other.info.run_id
    store.client.delete_run(other.info.run_id)
    store.client.restore_run(run_id)


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        (
            {"mlflow.source.git.commit": "f" * 40},
            f"commit {'f' * 40}: found no such commit in this repository",
        ),
        ({"mlflow.source.git.commit": ""}, "found no commit: it was made outside git"),
        ({"fingerprint": ""}, "found no tag fingerprint"),
    ],
    ids=["unknown commit", "no commit", "no fingerprint"],
)
def test_a_record_that_leads_nowhere_is_a_line(here: Desk, tags: dict[str, str], line: str) -> None:
    store = client.connect()
    commit = {"mlflow.source.git.commit": here.clean.data.tags["mlflow.source.git.commit"]}
    made = store.client.create_run(store.experiment_id, tags={**OF_A_RUN, **commit, **tags})
    store.client.set_terminated(made.info.run_id)
    with pytest.raises(InputError, match=line):
        reproduce.reproduce(made.info.run_id)
    store.client.delete_run(made.info.run_id)


def test_a_patch_that_does_not_fit_is_a_line(here: Desk, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "dirty.patch").write_text("--- a/params.yaml\n+++ b/params.yaml\n@@ -1 +1 @@\n-nothing\n+x\n")
    record = dataclasses.replace(RECORD, tags=here.clean.data.tags)
    with pytest.raises(InputError, match="patch does not apply"):
        reproduce.lay_out(record, kept, tmp_path / "checkout")


def test_the_params_of_the_run_are_those_that_count(here: Desk, tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "checkout"
    kept.mkdir()
    text = here.clone.run("git", "show", "HEAD:params.yaml").stdout.replace("lr: 0.02", "lr: 0.5")
    (kept / "params.yaml").write_text(text)
    said = reproduce.lay_out(dataclasses.replace(RECORD, tags=here.clean.data.tags), kept, folder)
    assert said.endswith("the run's params.yaml, which is another one: lr 0.02 -> 0.5")
    assert (folder / "params.yaml").read_text() == text
    assert not (folder / "notes.txt").exists()
    assert "NUM_BINS = 15" in (folder / "mnist/evaluation/scores.py").read_text()


def test_a_mirror_beside_the_checkout_is_found(
    here: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("data: {mirrors: [none, ../temporary, https://example.org/]}\n")
    assert sandbox.first_mirror(tmp_path) == str(here.temporary)
    monkeypatch.setenv("MNIST_MIRROR", "mnist")
    assert sandbox.first_mirror(tmp_path) == str(here.clone.folder / "mnist")
    monkeypatch.setenv("MNIST_MIRROR", "https://example.com/")
    assert sandbox.first_mirror(tmp_path) == "https://example.com/"


def test_a_replica_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    aside = sandbox.Replica(folder=tmp_path, checkout=tmp_path / "checkout")
    aside.checkout.mkdir()
    first, second = (sandbox._environment(aside, tmp_path / "cache") for _ in range(2))
    assert first == second


MACHINE = {"device": "CPU (AVX2), 1 thread", "python": "3.11.9", "torch": "2.15.0", "numpy": "2.4.0"}
RESULT = Result(
    dataset_sha256="d" * 64,
    fingerprint="f" * 64,
    weights_sha256="a" * 64,
    tensors_sha256="b" * 64,
    metrics={guarantee.ACCURACY: 0.95, "metrics/test.json: loss": 0.1, "metrics/test.json: recall.3": None},
    inputs={
        "train: cmd": "python -m stages.train",
        "train: lr": 0.01,
        "evaluate: mnist/evaluation/scores.py": "c" * 32,
    },
)
RECORD = Record(tags={**MACHINE, "weights_sha256": "a" * 64}, kept=RESULT)
BYTES = guarantee.promise(MACHINE, MACHINE)
METRICS = guarantee.promise(MACHINE, {**MACHINE, "torch": "2.16.0"})


def test_a_promise_says_what_it_rests_on() -> None:
    assert BYTES.is_bytes
    assert "device CPU (AVX2), 1 thread, python 3.11.9, torch 2.15.0, numpy 2.4.0" in BYTES.reason
    assert not METRICS.is_bytes
    assert METRICS.reason == "torch 2.15.0 there, 2.16.0 here"
    rebuilt = guarantee.promise({"rebuilt": "from files"}, MACHINE)
    assert not rebuilt.is_bytes
    assert rebuilt.reason == "the run does not tell its device, python, torch, numpy"


def made(**changes: Any) -> Result:
    return dataclasses.replace(RESULT, **changes)


def with_metrics(**changes: float) -> dict[str, float | None]:
    return {**RESULT.metrics, **{f"metrics/test.json: {key}": value for key, value in changes.items()}}


OTHER = {"weights_sha256": "e" * 64, "tensors_sha256": "e" * 64}


@pytest.mark.parametrize(
    ("result", "promised", "holds", "words"),
    [
        (made(), BYTES, True, "reproduced: byte for byte the same weights, and the same metrics"),
        (made(), METRICS, True, "more than was promised"),
        (made(**OTHER), BYTES, False, "models/model.safetensors, tag of the run"),
        (made(metrics=with_metrics(loss=0.100001)), BYTES, False, "metrics/test.json: loss"),
        (made(metrics=with_metrics(new=1)), BYTES, False, "metrics/test.json: new"),
        (made(**OTHER, metrics=with_metrics(accuracy=0.96)), METRICS, True, "1.00 points off, of at most 1"),
        (made(**OTHER, metrics=with_metrics(accuracy=0.94)), METRICS, True, "1.00 points off, of at most 1"),
        (
            made(**OTHER, metrics=with_metrics(accuracy=0.9601)),
            METRICS,
            False,
            "1.01 points off, more than 1",
        ),
        (made(**OTHER, metrics={}), METRICS, False, "no test accuracy"),
        (made(dataset_sha256="0" * 64, **OTHER), BYTES, False, "data/mnist.safetensors differs"),
        # Close is not enough where something else ran, equal bytes are.
        (made(**OTHER, inputs={**RESULT.inputs, "train: lr": 0.02}), METRICS, False, "train: lr"),
        (made(inputs={**RESULT.inputs, "train: lr": 0.02}), BYTES, True, "byte for byte"),
        (
            made(**OTHER, inputs={**RESULT.inputs, "train: lr": 0.02}),
            BYTES,
            False,
            "what went in differs: train: lr",
        ),
        # Another definition of the fingerprint, where all that it is made of is the same.
        (made(**OTHER, fingerprint="0" * 64), METRICS, True, "0.00 points off"),
    ],
)
def test_the_verdict(result: Result, promised: guarantee.Promise, holds: bool, words: str) -> None:
    rows = guarantee.compare(RECORD, result)
    verdict = guarantee.judge(RECORD, rows, promised)
    assert verdict.holds == holds
    assert words in verdict.text
    assert verdict.text.startswith("reproduced" if holds else "not reproduced")


def test_another_fingerprint_without_a_lock_file_is_not_passed_over() -> None:
    record = dataclasses.replace(RECORD, kept=dataclasses.replace(RESULT, inputs={}))
    result = made(**OTHER, fingerprint="0" * 64)
    verdict = guarantee.judge(record, guarantee.compare(record, result), METRICS)
    assert not verdict.holds
    assert "no dvc.lock" in verdict.text


@pytest.mark.parametrize("promised", [BYTES, METRICS], ids=["bytes", "metrics"])
@pytest.mark.parametrize(
    "record",
    [
        dataclasses.replace(RECORD, tags={**RECORD.tags, "weights_sha256": "0" * 64}),
        dataclasses.replace(RECORD, version=guarantee.Version("models:/m/1", "0" * 64, "b" * 64)),
        dataclasses.replace(RECORD, version=guarantee.Version("models:/m/1", "a" * 64, "0" * 64)),
    ],
    ids=["tag of the run", "tag of the version", "inside the version"],
)
def test_a_record_that_contradicts_itself_fails_whatever_was_promised(
    record: Record, promised: guarantee.Promise
) -> None:
    verdict = guarantee.judge(record, guarantee.compare(record, made()), promised)
    assert not verdict.holds
    assert "contradicts itself" in verdict.text


def test_the_table_is_aligned() -> None:
    rows = guarantee.compare(RECORD, made(**OTHER, metrics=with_metrics(accuracy=0.96)))
    head, *lines = guarantee.table(rows, METRICS)
    column = head.index("equal?")
    cells = {line[: head.index("recorded")].strip(): line[column:] for line in lines}
    assert cells["models/model.safetensors, tag of the run"] == "no, not promised"
    assert cells[guarantee.ACCURACY] == "within 1 point"
    assert cells["metrics/test.json: loss"] == "yes"
    assert all(line[column - 2 : column] == "  " for line in lines)


def test_a_result_is_read_from_what_dvc_and_the_stages_wrote(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / paths.TEST_METRICS).write_text(json.dumps({"accuracy": 0.9, "recall": {"0": 0.5}}))
    (tmp_path / paths.LOCK).write_text(
        "stages:\n"
        "  stats: {cmd: s, outs: [{path: data/stats.json, md5: abc}]}\n"
        "  train: {cmd: t, deps: [{path: data/stats.json, md5: abc},"
        " {path: mnist/training/model.py, md5: def}],\n"
        "    params: {params.yaml: {lr: 1e-05}}, outs: []}\n"
    )
    result = guarantee.read(tmp_path, dataset_sha256="d", fingerprint="f")
    assert result.metrics == {guarantee.ACCURACY: 0.9, "metrics/test.json: recall.0": 0.5}
    assert result.inputs == {"train: cmd": "t", "train: mnist/training/model.py": "def", "train: lr": 1e-05}
    assert result.weights_sha256 == ""
