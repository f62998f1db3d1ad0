"""How experiments are ranked; on made revisions first, then on a real queue in a clone."""

import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from ruamel.yaml import YAML

from mnist.cli import best
from mnist.cli.best import Candidate
from mnist.core.config import Split
from mnist.core.errors import InputError
from mnist.lineage.experiments import Revision
from mnist.tracking import client
from tests import checkout
from tests.checkout import Clone
from tests.conftest import SmallData

HEAD, ELSEWHERE = "a" * 40, "b" * 40
DEADLINE_SECONDS = 900  # for five experiments; on two cores that others use too they took 180


def candidate(
    name: str,
    val_accuracy: float,
    val_loss: float = 0.5,
    *,
    kind: Literal["experiment", "commit", "workspace"] = "experiment",
    baseline: str = HEAD,
    dataset_md5: str = "d",
    **params: Any,
) -> Candidate:
    """Named, scored, with these params beside the split's."""
    split = {key: params.get(key, value) for key, value in {"seed": 0, "val_size": 1000}.items()}
    revision = Revision(
        kind=kind,
        name=name,
        commit=HEAD if kind == "commit" else "",
        baseline=baseline if kind == "experiment" else "",
    )
    return Candidate(
        revision=revision,
        val_accuracy=val_accuracy,
        val_loss=val_loss,
        params={**split, **params},
        dataset_md5=dataset_md5,
        split=Split(**split),
    )


def names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [one.revision.name for one in candidates]


def test_accuracy_then_loss_then_what_is_there_then_the_name_decide() -> None:
    ranking = best.rank(
        [
            candidate("d", 0.96),
            candidate("a", 0.96),
            candidate("workspace", 0.96, kind="workspace"),
            candidate("z", 0.97, 0.9),
            candidate("c", 0.96, 0.4),
        ]
    )

    assert names(ranking.ranked) == ["z", "c", "workspace", "a", "d"]
    assert ranking.others == ()


@pytest.mark.parametrize(
    ("accuracy", "val_size", "error"),
    [(0.9, 1000, math.sqrt(0.9 * 0.1 / 1000)), (0.5, 400, 0.025), (1.0, 200, 0.005), (0.0, 1, 1.0)],
)
def test_the_standard_error_is_binomial_and_at_least_one_image(
    accuracy: float, val_size: int, error: float
) -> None:
    assert candidate("a", accuracy, val_size=val_size).standard_error == pytest.approx(error)


def test_what_is_within_one_standard_error_is_close() -> None:
    at, below = 0.9 - 0.02, 0.9 - 0.021  # sqrt(0.9 * 0.1 / 225) = 0.02
    scores = {"best": 0.9, "equal": 0.9, "at": at, "below": below}
    ranking = best.rank([candidate(name, score, val_size=225) for name, score in scores.items()])

    assert names(ranking.close) == ["equal", "at"]
    (line,) = [line for line in best.advice(ranking, HEAD) if line.startswith("best: ")]
    assert line == (
        "best: best; 2 others are within one standard error on 225 images: prefer the cheaper or simpler"
    )


def test_one_image_of_many_is_close_in_spite_of_rounding() -> None:
    ranking = best.rank(
        [candidate(name, round(num / 59999, 6), val_size=59999) for name, num in (("a", 59999), ("b", 59998))]
    )

    assert names(ranking.close) == ["b"]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"val_size": 100}, {"dataset_md5": "e"}], ids=["seed", "val_size", "data"]
)
def test_other_validation_images_get_a_mark_and_no_rank(other: dict[str, Any]) -> None:
    ranking = best.rank([candidate("lucky", 1.0, **other), candidate("a", 0.9), candidate("b", 0.8)])

    assert names(ranking.ranked) == ["a", "b"]
    assert names(ranking.others) == ["lucky"]
    rows = [line.split()[:2] for line in best.table(ranking)]
    assert rows[1:] == [["1", "a"], ["2", "b"], ["*", "lucky"]]
    lines = best.advice(ranking, HEAD)
    assert lines[0].startswith("* scored on other validation images")
    assert lines[1] == "best: a"


def test_a_sweep_over_seeds_has_no_best() -> None:
    ranking = best.rank([candidate(f"s{seed}", 0.9 + seed / 100, seed=seed) for seed in range(3)])

    assert ranking.best is None
    assert best.advice(ranking, HEAD)[1:] == [
        "best: none, since no two were scored on the same validation images"
    ]


def test_the_only_one_is_the_best() -> None:
    assert best.advice(best.rank([candidate("a", 0.5)]), HEAD)[0] == "best: a"


def test_the_table_is_aligned_and_shows_what_differs() -> None:
    ranking = best.rank(
        [
            candidate("HEAD", 0.95, kind="commit", lr=0.01, model="mlp", epochs=1, shift=True),
            candidate("long-name", 0.96, 12.25, lr=1e-05, model="simple_cnn", epochs=1),
        ]
    )

    assert best.table(ranking) == [
        "   experiment  val_accuracy            val_loss     lr       model  shift",
        "1  long-name         0.9600  ± 0.0062   12.2500  1e-05  simple_cnn      -",
        "2  HEAD              0.9500  ± 0.0069    0.5000   0.01         mlp   true",
    ]
    assert best.table(ranking, top=1)[1:] == [best.table(ranking)[1], "... and 1 more"]


def test_the_best_is_applied_by_name_from_its_own_commit() -> None:
    here, there = (best.rank([candidate("a", 0.9, baseline=start)]) for start in (HEAD, ELSEWHERE))

    assert best.advice(here, HEAD)[1:] == [
        "  apply   dvc exp apply a",
        "  branch  dvc exp branch a a-branch",
    ]
    assert best.advice(there, HEAD)[1:] == [
        "  apply   git checkout bbbbbbbbbbbb && dvc exp apply a",
        "  branch  git checkout bbbbbbbbbbbb && dvc exp branch a a-branch",
    ]


def test_what_is_there_already_needs_no_command() -> None:
    ranking = best.rank([candidate("HEAD", 0.9, kind="commit"), candidate("a", 0.899)])

    (line,) = best.advice(ranking, HEAD)
    assert line.startswith(
        "best: HEAD, which no experiment beats; 1 other is within one standard error on 1000"
    )
    assert best.advice(ranking, ELSEWHERE)[1:] == ["  apply   git checkout aaaaaaaaaaaa && dvc checkout"]


def scored(val_accuracy: Any, val_loss: Any = 0.5) -> bytes:
    return json.dumps({"val_loss": val_loss, "val_accuracy": val_accuracy}).encode()


def locked(metrics: bytes, **params: Any) -> bytes:
    """A `dvc.lock` that knows these metrics."""
    digest = hashlib.md5(metrics, usedforsecurity=False).hexdigest()
    train = {
        "cmd": "python -m stages.train",
        "deps": [{"path": "data/mnist.safetensors", "md5": "d"}],
        "params": {"params.yaml": {"seed": 0, "val_size": 200, **params}},
        "outs": [{"path": "metrics/train.json", "md5": digest}],
    }
    stream = io.StringIO()
    YAML().dump({"schema": "2.0", "stages": {"train": train}}, stream)
    return stream.getvalue().encode()


def test_params_are_those_of_the_training() -> None:
    metrics = scored(0.945)

    found = best.read(Revision(kind="workspace", name="w"), (metrics, locked(metrics, lr=1e-05)))

    assert (found.val_accuracy, found.val_loss, found.dataset_md5) == (0.945, 0.5, "d")
    assert found.params == {"seed": 0, "val_size": 200, "lr": 1e-05}
    assert found.split == Split(seed=0, val_size=200)


GOOD = scored(0.9)


@pytest.mark.parametrize(
    ("metrics", "lock", "complaint"),
    [
        (None, locked(GOOD), "metrics/train.json: found no such file"),
        (GOOD, None, "dvc.lock: found no such file"),
        (b'{"val_accuracy": 0.', locked(GOOD), "metrics/train.json: found no JSON"),
        (b"\xff", locked(GOOD), "metrics/train.json: found no JSON"),
        (b"[1]", locked(GOOD), "val_accuracy: found nothing"),
        (scored(math.nan), locked(GOOD), "val_accuracy: found nan"),
        (scored(math.inf), locked(GOOD), "val_accuracy: found inf"),
        (scored(0.9, math.nan), locked(GOOD), "val_loss: found nan"),
        (scored(0.9, math.inf), locked(GOOD), "val_loss: found inf"),
        (scored(True), locked(GOOD), "val_accuracy: found True"),
        (scored("0.9"), locked(GOOD), "val_accuracy: found '0.9'"),
        (scored(94.7), locked(GOOD), "val_accuracy: found 94.7, expected 0 to 1"),
        (GOOD, b"stages: [", "dvc.lock: found ParserError"),
        (GOOD, b"stages: {}", "dvc.lock: found KeyError: 'train'"),
        (GOOD, b"<<<<<<< HEAD", "dvc.lock: found "),
        (GOOD, locked(scored(0.8)), "metrics/train.json: found not the file that dvc.lock knows"),
        (GOOD, locked(GOOD, val_size=0), "dvc.lock: train: val_size: found 0"),
    ],
    ids=lambda value: value.split(": found")[0] if isinstance(value, str) else "",
)
def test_what_is_no_result_is_one_line(metrics: bytes | None, lock: bytes | None, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        best.read(Revision(kind="workspace", name="w"), (metrics, lock))

    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Made:
    """A repository in which experiments are made by hand, as DVC leaves them."""

    folder: Path

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    def write(self, val_accuracy: Any, *, test_accuracy: float = 0.5, **params: Any) -> None:
        """The files of a result."""
        metrics = scored(val_accuracy)
        (self.folder / "metrics/train.json").write_bytes(metrics)
        (self.folder / "metrics/test.json").write_text(json.dumps({"accuracy": test_accuracy}))
        (self.folder / "dvc.lock").write_bytes(locked(metrics, **params))

    def commit(self, message: str) -> str:
        self.git("add", ".")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, val_accuracy: Any, **more: Any) -> None:
        """An experiment that starts from HEAD; the workspace is as before."""
        start = self.git("rev-parse", "HEAD")
        self.write(val_accuracy, **more)
        self.git("update-ref", f"refs/exps/{start[:2]}/{start[2:]}/{name}", self.commit(name))
        self.git("reset", "-q", "--hard", start)


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository of git and DVC."""
    folder = tmp_path_factory.mktemp("made") / "repository"
    checkout.initialise(folder)
    (folder / "metrics").mkdir()
    return folder


@pytest.fixture
def made(initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A repository with one result of accuracy 0.9, which is the current folder; it has no MLflow store."""
    folder = tmp_path / "repository"
    shutil.copytree(initialised, folder)
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(folder)
    repository = Made(folder)
    repository.write(0.9, lr=0.01)
    repository.commit("Start")
    return repository


def told(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    best.main(arguments)
    return capsys.readouterr().out.splitlines()


def ranked(lines: list[str]) -> list[str]:
    """The names in the table that `lines` start with."""
    return [line.split()[1] for line in lines[1:] if re.match(r" *[0-9*]+  ", line)]


def test_validation_decides_though_test_says_otherwise_and_test_is_not_read(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made.experiment("validated", 0.95, test_accuracy=0.1, lr=0.02)
    made.experiment("tested", 0.92, test_accuracy=0.99, lr=0.03)
    # Whoever opens the test metrics fails: their objects are gone, and in the workspace is a folder.
    for revision in ("HEAD", *made.git("for-each-ref", "--format=%(objectname)", "refs/exps").split()):
        digest = made.git("rev-parse", f"{revision}:metrics/test.json")
        (made.folder / ".git/objects" / digest[:2] / digest[2:]).unlink(missing_ok=True)
        with pytest.raises(subprocess.CalledProcessError):
            made.git("cat-file", "blob", digest)
    (made.folder / "metrics/test.json").unlink()
    (made.folder / "metrics/test.json").mkdir()

    lines = told(capsys=capsys)

    assert ranked(lines) == ["validated", "tested", "HEAD"]
    assert "best: validated" in lines
    assert not [line for line in lines if "0.99" in line]


def test_the_workspace_is_shown_where_it_differs(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.experiment("a", 0.93, lr=0.02)
    assert ranked(told(capsys=capsys)) == ["a", "HEAD"]
    made.write(0.93, lr=0.02)  # as `dvc exp apply a` does
    assert ranked(told(capsys=capsys)) == ["a", "HEAD"]
    made.write(0.97, lr=0.03)
    lines = told(capsys=capsys)
    assert ranked(lines) == ["workspace", "a", "HEAD"]
    assert "best: workspace, which no experiment beats" in lines


def test_the_broken_are_named_and_left_out(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.experiment("fine", 0.91)
    made.experiment("nan", math.nan)
    made.experiment("cut", 0.99)
    start = made.git("rev-parse", "HEAD")
    made.write(0.99)
    (made.folder / "metrics/train.json").write_text('{"val_accuracy": 0.9')
    made.git("update-ref", f"refs/exps/{start[:2]}/{start[2:]}/cut", made.commit("cut"))
    made.git("reset", "-q", "--hard", start)

    lines = told(capsys=capsys)

    assert ranked(lines) == ["fine", "HEAD"]
    left_out = [line.split(": found")[0] for line in lines if line.startswith("left out")]
    assert sorted(left_out) == [
        "left out: cut: metrics/train.json",
        "left out: nan: metrics/train.json: val_accuracy",
    ]


def test_without_a_result_it_says_so(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(capsys=capsys)
    assert line.startswith("best: no experiment of HEAD has finished: dvc exp run --queue -S ")
    made.write(math.nan)
    made.commit("Broken")
    made.experiment("nan", math.nan, lr=0.02)
    lines = told(capsys=capsys)
    assert lines[0] == "best: none has a result"
    assert len(lines) == 3


def test_other_commits_are_looked_at_on_request(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    first = made.git("rev-parse", "HEAD")
    made.experiment("same", 0.95, lr=0.02)
    made.write(0.92, lr=0.03)
    made.commit("Next")
    made.experiment("same", 0.94, lr=0.04)
    made.git("tag", "v1", first)

    assert ranked(told(capsys=capsys)) == ["same", "HEAD"]
    lines = told("--rev", "v1", capsys=capsys)
    assert ranked(lines) == ["same", "v1"]
    assert f"  apply   git checkout {first[:12]} && dvc exp apply same" in lines
    lines = told("--all-commits", capsys=capsys)
    assert ranked(lines) == ["same", "same", "HEAD", first[:7]]
    assert ranked(told("--rev", "HEAD", "v1", "--top", "2", capsys=capsys)) == ["same", "same"]


def test_the_run_is_left_out_where_the_store_is_away(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.experiment("a", 0.95)
    assert (
        told(capsys=capsys)[-1] == f"  MLflow  no run: there is no {made.folder}/mlflow.db (make reconcile)"
    )
    assert not (made.folder / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # port of "discard", which nobody serves
    start = time.monotonic()
    last = told(capsys=capsys)[-1]
    assert last.startswith("  MLflow  left out: MLflow at http://127.0.0.1:9 does not answer")
    assert time.monotonic() - start < 30


def test_the_run_is_that_of_the_name_and_the_accuracy(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.experiment("it's", 0.95)
    store = client.connect()
    ids = []
    for tag, accuracy in (("older it's", 0.95), ("it's", 0.94), ("it's-not", 0.95)):
        run = store.client.create_run(store.experiment_id, tags={client.EXPERIMENTS: tag})
        store.client.log_metric(run.info.run_id, "val_accuracy", accuracy)
        store.client.set_terminated(run.info.run_id)
        ids.append(run.info.run_id)

    last = told(capsys=capsys)[-1]

    assert (
        last == f"  MLflow  http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs/{ids[0]} (make ui)"
    )


@pytest.mark.parametrize("kind", ["folder", "git", "unknown"])
def test_what_is_no_checkout_is_one_line(
    kind: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--rev", "nowhere"] if kind == "unknown" else []
    if kind != "unknown":
        folder = tmp_path / kind
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        if kind == "git":
            repository = Made(folder)
            repository.git("init", "-q")
            (folder / "file").touch()
            repository.commit("One")

    with pytest.raises(SystemExit) as caught:
        best.main(arguments)

    message = str(caught.value.code)
    assert message.startswith("ERROR: ")
    assert "\n" not in message
    assert (str(made.folder) if kind == "unknown" else kind) in message


def test_a_silly_number_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        best.main(["--top", "0"])

    assert caught.value.code == 2


# From here on: a real queue, on one clone, in this order.

GRID = [f"grid-{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout of this file's own with data, without a trained network and without a store."""
    folder = tmp_path_factory.mktemp("clone") / "pipeline"
    yield checkout.clone_with_data(folder, small_data)
    checkout.stop_workers(folder)
    shutil.rmtree(folder)


def table(clone: Clone) -> list[str]:
    return clone.run("python", "-m", "mnist.cli.best").stdout.splitlines()


def test_what_is_queued_is_counted(clone: Clone) -> None:
    grid = ["-S", "epochs=1", "-S", "lr=0.005,0.02", "-S", "n_features=4,6"]
    clone.run("dvc", "exp", "run", "--queue", "-n", "grid", *grid)
    clone.run("dvc", "exp", "run", "--queue", "-n", "doomed", "-S", "lr=1e9")

    first, *_, last = table(clone)

    assert first.startswith("best: no experiment of HEAD has finished")
    assert last == "5 still queued: dvc queue start -j 2"


def test_a_queue_on_a_new_store_gives_each_experiment_one_readable_run(clone: Clone) -> None:
    assert not (clone.folder / "mlflow.db").exists()
    checkout.start_workers(clone, 2)
    deadline = time.monotonic() + DEADLINE_SECONDS
    num_running = 0
    # `dvc queue status` would ask the workers each time, and a question can kill one (docs/sweeps.md).
    while waiting := [line for line in table(clone) if " still " in line]:
        assert time.monotonic() < deadline, waiting
        running = sum(int(line.split()[0]) for line in waiting if "running" in line)
        num_running = max(num_running, running)
        if not running:
            checkout.start_workers(clone, 2)  # so does a user whose workers have died
        time.sleep(2)

    status = clone.run("dvc", "queue", "status").stdout
    assert (status.count("Success"), status.count("Failed")) == (4, 1), clone.run(
        "dvc", "queue", "logs", GRID[0]
    ).stdout
    assert num_running == 2
    runs = clone.runs()
    assert sorted(run.data.tags["dvc.experiments"] for run in runs) == GRID
    for run in runs:
        name = run.data.tags["dvc.experiments"]
        commit = clone.run("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}").stdout
        kept = Path(clone.client.download_artifacts(run.info.run_id, "metrics/train.json")).read_text()
        assert kept == clone.run("git", "show", f"{commit.strip()}:metrics/train.json").stdout
        assert run.data.metrics["val_accuracy"] == pytest.approx(json.loads(kept)["val_accuracy"], abs=1e-6)


def test_dvc_mlflow_and_best_have_one_order(clone: Clone) -> None:
    lines = table(clone)
    ours = ranked(lines)
    show = ["exp", "show", "--csv", "--sort-by", "val_accuracy", "--sort-order", "desc"]
    rows = list(csv.DictReader(clone.run("dvc", *show).stdout.splitlines()))
    theirs = [row["Experiment"] for row in rows if row["State"] == "Success"]
    accuracies = {row["Experiment"]: float(row["val_accuracy"]) for row in rows if row["State"] == "Success"}
    runs = clone.client.search_runs(["1"], order_by=["metrics.val_accuracy DESC"])

    assert sorted(ours) == sorted(theirs) == GRID
    assert len(set(accuracies.values())) == 4  # or else the order would be one of several
    assert ours == theirs
    assert ours == [run.info.run_name for run in runs if run.info.status == "FINISHED"]
    assert [float(line.split()[2]) for line in lines[1:5]] == [accuracies[name] for name in ours]
    assert lines[0].split() == ["experiment", "val_accuracy", "val_loss", "lr", "n_features"]


def test_what_failed_is_named_and_the_run_is_found(clone: Clone) -> None:
    lines = table(clone)
    (run,) = [run for run in clone.runs() if run.info.run_name == ranked(lines)[0]]

    assert "left out: doomed: it failed, `dvc queue logs doomed` says why" in lines
    assert "params.yaml: lr: found a loss of " in clone.run("dvc", "queue", "logs", "doomed").stdout
    address = f"http://127.0.0.1:5000/#/experiments/1/runs/{run.info.run_id}"
    assert f"  MLflow  {address} (make ui)" in lines


def test_the_printed_command_brings_params_and_results(clone: Clone) -> None:
    lines = table(clone)
    winner = ranked(lines)[0]
    (command,) = [line.removeprefix("  apply   ") for line in lines if line.startswith("  apply")]
    assert command == f"dvc exp apply {winner}"

    clone.run(*command.split())

    (run,) = [run for run in clone.runs() if run.info.run_name == winner]
    params = YAML(typ="safe").load(clone.read("params.yaml"))
    assert {key: str(params[key]) for key in ("lr", "n_features", "epochs")} == {
        key: run.data.params[key] for key in ("lr", "n_features", "epochs")
    }
    accuracy = json.loads(clone.read("metrics/train.json"))["val_accuracy"]
    assert accuracy == pytest.approx(run.data.metrics["val_accuracy"], abs=1e-6)
    # A queue moves no alias; the workspace does, and here it holds the result for the first time.
    assert clone.dvc("repro") == ["register"]
    challenger = clone.client.get_model_version_by_alias(checkout.NAME, "challenger")
    assert challenger.run_id == run.info.run_id
    assert clone.dvc("repro") == []
    assert ranked(table(clone))[:4] == ranked(lines)
