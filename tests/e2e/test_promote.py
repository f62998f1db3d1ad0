"""`mnist promote` and `mnist rollback` on a real MLflow store: each situation, its answer and its record."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import mnist.cli
from mnist.core.errors import InputError
from mnist.evaluation.predictions import write_table
from mnist.tracking import champion, client
from tests import servers
from tests.conftest import DIGITS

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 100
LABELS = np.arange(NUM_IMAGES).astype(np.uint8) % 10


@dataclass(frozen=True)
class Desk:
    """A registered model of its own in the store, and a folder with its params."""

    folder: Path
    name: str
    uri: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def run(self, *, wrong: range, weights: str, test: str = "test", finished: bool = True) -> Run:
        """A run of these weights, which are wrong on these images."""
        store = client.connect()
        tags = {"weights_sha256": f"{self.name}-{weights}", "test_sha256": test, "dataset_sha256": "all"}
        run = store.client.create_run(
            store.experiment_id, run_name=weights, tags={**tags, "rerun": "dvc repro"}
        )
        predicted_N = LABELS.astype(np.int64)
        predicted_N[list(wrong)] = (predicted_N[list(wrong)] + 1) % 10
        file = self.folder / "predictions.csv"
        write_table(file, labels_N=LABELS, predicted_N=predicted_N, classes=DIGITS.classes)
        store.client.log_artifact(run.info.run_id, str(file), "metrics")
        accuracy = round(float((predicted_N == LABELS).mean()), 6)
        store.client.log_metric(run.info.run_id, "test/accuracy", accuracy)
        if finished:
            store.client.set_terminated(run.info.run_id)
        return run

    def challenger(self, wrong: range = range(0), *, weights: str = "", test: str = "test") -> str:
        """A new version, wrong on these images, with the alias; its number."""
        known = self.client.search_model_versions(f"name = '{self.name}'")
        weights = weights or f"run-{len(known) + 1}"
        run = self.run(wrong=wrong, weights=weights, test=test)
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        made = self.client.create_model_version(
            self.name,
            run.info.artifact_uri,
            run.info.run_id,
            tags={"weights_sha256": f"{self.name}-{weights}"},
        )
        self.client.set_registered_model_alias(self.name, "challenger", made.version)
        return str(made.version)

    def version(self, number: str) -> Any:
        return self.client.get_model_version(self.name, number)

    def champion(self) -> str | None:
        aliases = self.client.get_registered_model(self.name).aliases
        return str(aliases["champion"]) if "champion" in aliases else None

    @property
    def log(self) -> list[dict[str, Any]]:
        file = self.folder / "promotions.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def records(self, number: str) -> list[dict[str, Any]]:
        """The artifacts of a version's run, oldest first."""
        run_id = self.version(number).run_id
        names = sorted(file.path for file in self.client.list_artifacts(run_id, "promotions"))
        return [json.loads(Path(self.client.download_artifacts(run_id, name)).read_text()) for name in names]

    def promote(self, *arguments: str) -> Result:
        """Run `mnist promote`."""
        return self.invoke("promote", *arguments)

    def rollback(self, *arguments: str) -> Result:
        """Run `mnist rollback`."""
        return self.invoke("rollback", *arguments)

    def invoke(self, *arguments: str) -> Result:
        """Run a command in this process; it never ends with a traceback."""
        result = CliRunner().invoke(mnist.cli.main, arguments, prog_name="mnist")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    def deny(self, table: str) -> None:
        """Make the store refuse to write this model's rows of a table."""
        name = self.name.replace("-", "_")
        with sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool).begin() as connection:
            for event in ("INSERT", "UPDATE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER deny_{name}_{table}_{event} BEFORE {event} ON {table} "
                    f"WHEN NEW.name = '{self.name}' BEGIN SELECT RAISE(ABORT, 'denied'); END"
                )

    def allow(self, table: str) -> None:
        """Let it write again."""
        name = self.name.replace("-", "_")
        with sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool).begin() as connection:
            for event in ("INSERT", "UPDATE"):
                connection.exec_driver_sql(f"DROP TRIGGER deny_{name}_{table}_{event}")


@pytest.fixture(scope="module")
def store_uri(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store; each test has a model of its own in it."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copyfile(migrated_store, database)
    return f"sqlite:///{database}"


@pytest.fixture
def desk(
    store_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Desk:
    for variable in ("DVC_ROOT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.chdir(tmp_path)
    name = f"model-{request.node.name.encode().hex()[-60:]}"
    lines = (ROOT / "params.yaml").read_text().splitlines(keepends=True)
    values = {"model_name": name, "min_accuracy": "0.8", "alpha": "0.05"}
    for key, value in values.items():
        (at,) = [n for n, line in enumerate(lines) if line.startswith(f"  {key}:")]
        lines[at] = f"  {key}: {value}\n"
    (tmp_path / "params.yaml").write_text("".join(lines))
    (tmp_path / "dvc.yaml").touch()
    return Desk(folder=tmp_path, name=name, uri=store_uri)


def test_without_a_model_or_a_challenger_it_is_an_error(desk: Desk) -> None:
    for done in (desk.promote(), desk.promote("--dry-run"), desk.rollback()):
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"ERROR: models:/{desk.name}: found no such model")
        assert done.stderr.count("\n") == 1
    desk.challenger()
    desk.client.delete_registered_model_alias(desk.name, "challenger")
    done = desk.promote()
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ERROR: models:/{desk.name}@challenger: found no such version")
    assert desk.log == []


def test_the_first_champion_is_promoted_on_the_floor_and_written_down_in_three_places(desk: Desk) -> None:
    number = desk.challenger(range(20))
    done = desk.promote()
    assert done.exit_code == 0
    assert desk.champion() == number
    (record,) = desk.log
    assert record["decision"] == "promoted"
    assert record["candidate"]["accuracy"] == 0.8
    assert record["candidate"]["run_id"] == desk.version(number).run_id
    assert record["incumbent"] is None
    assert record["model"] == desk.name
    assert json.loads(desk.version(number).tags["promotion"]) == record
    assert desk.records(number) == [record]


def test_an_author_whose_name_is_no_utf_8_is_written_down(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.folder / "gitconfig").write_bytes(b"[user]\n\tname = Jos\xe9\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(desk.folder / "gitconfig"))
    desk.challenger()
    assert desk.promote().exit_code == 0
    assert desk.log[0]["who"].endswith("(Jos\ufffd)")


def test_names_in_a_store_do_not_control_the_terminal(desk: Desk) -> None:
    number = desk.challenger(weights="run\x1b[2J")
    predicted_N = np.where(LABELS == 0, 1, LABELS).astype(np.int64)
    file = desk.folder / "predictions.csv"
    write_table(file, labels_N=LABELS, predicted_N=predicted_N, classes=["\x1b[31mzero", *DIGITS.classes[1:]])
    run_id = desk.version(number).run_id
    desk.client.log_artifact(run_id, str(file), "metrics")
    desk.client.log_metric(run_id, "test/accuracy", 0.9)
    done = desk.promote()
    assert done.exit_code == 0
    assert "hardly recognised" in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


def test_a_dry_run_says_so_and_writes_nothing(desk: Desk) -> None:
    number = desk.challenger()
    done = desk.promote("--dry-run")
    assert done.exit_code == 0
    assert desk.champion() is None
    assert not (desk.folder / "promotions.jsonl").exists()
    assert desk.records(number) == []
    assert set(desk.version(number).tags) == {"weights_sha256"}
    desk.promote()
    worse = desk.challenger(range(10))
    refused = desk.promote("--dry-run")
    assert refused.exit_code == 1
    assert set(desk.version(worse).tags) == {"weights_sha256"}
    assert len(desk.log) == 1


def test_only_the_result_of_this_checkout_is_promoted_on_request(desk: Desk) -> None:
    desk.challenger(weights="of an older commit")
    weights = desk.folder / "models/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    done = desk.promote("--only-this-result")
    assert done.exit_code == 2
    assert "found version 1, another model than models/model.safetensors" in done.stderr
    assert (desk.champion(), desk.log) == (None, [])
    digest = hashlib.sha256(b"weights").hexdigest()
    desk.client.set_model_version_tag(desk.name, "1", "weights_sha256", digest)
    assert desk.promote("--only-this-result").exit_code == 0
    assert desk.champion() == "1"


def test_a_better_one_takes_the_place_and_knows_who_was_before(desk: Desk) -> None:
    desk.challenger(range(10))
    desk.promote()
    number = desk.challenger(range(4))
    done = desk.promote()
    assert done.exit_code == 0
    assert desk.champion() == number == "2"
    for number_shown in ("96.00%", "90.00%", "+6.00 pp", "worse p = 1", "two-sided p = 0.0312", "p = 0.0156"):
        assert number_shown in done.stdout
    assert desk.version("2").tags["promoted_over"] == "1"
    assert [record["incumbent"] and record["incumbent"]["version"] for record in desk.log] == [None, "1"]
    assert desk.log[1]["fixed"] == 6
    assert desk.records("2") == desk.log[1:]


def test_a_refusal_moves_nothing_and_is_written_down_all_the_same(desk: Desk) -> None:
    desk.challenger(range(10))
    desk.promote()
    desk.challenger(range(15))
    done = desk.promote()
    assert done.exit_code == 1
    assert desk.champion() == "1"
    assert desk.log[1]["decision"] == "refused"
    assert "worse than the champion (p = 0.0312" in desk.log[1]["reason"]
    assert json.loads(desk.version("2").tags["promotion"]) == desk.log[1]
    assert "promoted_over" not in desk.version("2").tags
    assert desk.records("2") == desk.log[1:]


@pytest.mark.parametrize("weights", ["run-1", "run-2"], ids=["another version of its weights", "itself"])
def test_the_champion_again_is_nothing_to_do(weights: str, desk: Desk) -> None:
    desk.challenger(weights="run-1")
    desk.promote()
    if weights == "run-1":
        desk.challenger(weights="run-1")
    done = desk.promote()
    assert done.exit_code == 0
    assert ("same weights" if weights == "run-1" else "the champion already") in done.stdout
    assert desk.champion() == "1"
    assert len(desk.log) == 1
    assert desk.promote("--dry-run").stdout == done.stdout


def test_other_test_data_are_refused_until_the_champion_is_tested_on_them(desk: Desk) -> None:
    desk.challenger(weights="first", test="old")
    desk.promote()
    desk.challenger(test="new")
    done = desk.promote()
    assert done.exit_code == 1
    assert desk.champion() == "1"
    assert desk.log[1]["p_worse"] is None
    # A run that did not finish proves nothing.
    desk.run(wrong=range(3), weights="first", test="new", finished=False)
    assert desk.promote().exit_code == 1
    # The same weights, tested on the new data.
    run = desk.run(wrong=range(3), weights="first", test="new")
    assert desk.promote().exit_code == 0
    assert desk.champion() == "2"
    assert desk.log[-1]["incumbent"]["run_id"] == run.info.run_id
    assert desk.log[-1]["fixed"] == 3


@pytest.mark.parametrize(
    ("whose", "loss", "reason"),
    [
        ("1", "deleted", "run {run} of version 1 is deleted: `mlflow runs restore --run-id {run}` or "),
        ("2", "file", "({run}) of version 2 has no metrics/predictions.csv: "),
        ("2", "corrupted", "({run}) of version 2, metrics/predictions.csv, line 9: found '7,7', "),
        ("1", "altered", "({run}) of version 1, metrics/predictions.csv: found an accuracy of 0."),
    ],
)
def test_lost_evidence_is_named_with_what_restores_it(whose: str, loss: str, reason: str, desk: Desk) -> None:
    desk.challenger(range(5), weights="first")
    desk.promote()
    desk.challenger(range(5), weights="second")
    run_id = desk.version(whose).run_id
    artifacts = Path(desk.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    file = artifacts / "metrics/predictions.csv"
    if loss == "deleted":
        desk.client.delete_run(run_id)
    elif loss == "file":
        file.unlink()
    else:
        line = {"corrupted": "\n7,7\n", "altered": "\n7,7,77\n"}[loss]
        file.write_text(file.read_text().replace("\n7,7,7\n", line))

    done = desk.promote()

    assert done.exit_code == 1
    assert reason.format(run=run_id) in done.stdout
    assert desk.champion() == "1"
    assert json.loads(desk.version("2").tags["promotion"]) == desk.log[1]
    # Another run of the same weights, as a rebuilt store has, is as good.
    desk.run(wrong=range(5), weights={"1": "first", "2": "second"}[whose])
    assert desk.promote().exit_code == 0
    assert desk.champion() == "2"


def lock_artifacts(desk: Desk) -> None:
    artifacts = desk.client.get_run(desk.version("1").run_id).info.artifact_uri.removeprefix("file://")
    (Path(artifacts) / "promotions").write_text("no folder")


@pytest.mark.parametrize(
    "lock",
    [
        lambda desk: (desk.folder / "promotions.jsonl").mkdir(),
        lock_artifacts,
        lambda desk: desk.deny("model_version_tags"),
    ],
    ids=["log", "artifacts", "tags"],
)
def test_a_record_that_cannot_be_written_stops_the_alias(lock: Callable[[Desk], None], desk: Desk) -> None:
    desk.challenger()
    lock(desk)
    done = desk.promote()
    assert done.exit_code == 2
    assert done.stderr.startswith("ERROR: ")
    assert done.stderr.count("\n") == 1
    assert desk.champion() is None
    log = desk.folder / "promotions.jsonl"
    assert log.is_dir() or desk.log == []
    assert set(desk.version("1").tags) == {"weights_sha256"}


def test_an_alias_that_does_not_move_is_recorded_already_and_the_next_time_moves(desk: Desk) -> None:
    desk.challenger()
    desk.deny("registered_model_aliases")
    done = desk.promote()
    assert done.exit_code == 2
    assert "denied" in done.stderr
    assert desk.champion() is None
    assert len(desk.log) == len(desk.records("1")) == 1
    desk.allow("registered_model_aliases")
    assert desk.promote().exit_code == 0
    assert desk.champion() == "1"
    assert len(desk.log) == 2


def test_the_log_only_grows_even_after_a_line_that_a_crash_cut_off(desk: Desk) -> None:
    log = desk.folder / "promotions.jsonl"
    log.write_text('{"time": "2026-01-02"}\n{"time": "20')
    desk.challenger()
    desk.promote()
    first, cut, line = log.read_text().splitlines()
    assert (first, cut) == ('{"time": "2026-01-02"}', '{"time": "20')
    assert json.loads(line)["decision"] == "promoted"


def test_rollback_goes_back_step_by_step_and_promotion_goes_on(desk: Desk) -> None:
    for _ in range(3):
        desk.challenger()
        desk.promote()
    assert desk.champion() == "3"
    assert desk.rollback("--dry-run").exit_code == 0
    assert (desk.champion(), len(desk.log)) == ("3", 3)
    assert desk.rollback().exit_code == 0
    assert desk.champion() == "2"
    record = desk.log[-1]
    assert (record["decision"], record["candidate"]["version"]) == ("rolled back", "2")
    assert record["incumbent"]["version"] == "3"
    assert json.loads(desk.version("2").tags["promotion"]) == record
    assert desk.records("2")[-1] == record
    assert desk.rollback().exit_code == 0
    assert desk.champion() == "1"
    assert desk.rollback().exit_code == 2
    assert desk.champion() == "1"
    assert len(desk.log) == 5
    assert desk.promote().exit_code == 0
    assert desk.champion() == "3"
    assert desk.version("3").tags["promoted_over"] == "1"


def test_rollback_retraces_a_version_that_was_the_champion_twice(desk: Desk) -> None:
    for _ in range(2):
        desk.challenger()
        desk.promote()
    desk.client.set_registered_model_alias(desk.name, "challenger", "1")  # as a rerun of its result does
    desk.promote()
    assert desk.champion() == "1"
    went_back_to = []
    while desk.rollback().exit_code == 0:
        went_back_to.append(desk.champion())
    assert went_back_to == ["2", "1"]


def test_a_store_that_lost_its_champion_gets_the_recorded_one_by_its_weights(desk: Desk) -> None:
    for number in range(3):
        desk.challenger(weights=f"run-{number}")
        assert desk.promote().exit_code == 0
    assert desk.rollback().exit_code == 0
    store, weights = client.connect(), desk.log[-1]["candidate"]["weights_sha256"]
    desk.client.delete_registered_model(desk.name)
    made = [desk.version(desk.challenger(weights=f"run-{number}")) for number in (2, 1, 0)]

    champion.restore(store, made[2:])  # it is not among these results
    assert desk.champion() is None
    champion.restore(store, made)
    assert desk.version(desk.champion() or "").tags["weights_sha256"] == weights
    champion.restore(store, made)
    assert desk.rollback().exit_code == 0
    assert desk.champion() == str(made[2].version)

    champion.restore(store, made)  # it moves no champion that is there, whatever the records are
    (desk.folder / champion.LOG).write_text("{")
    champion.restore(store, made)
    desk.client.delete_registered_model_alias(desk.name, "champion")
    with pytest.raises(InputError, match=r"promotions\.jsonl, line 1: "):
        champion.restore(store, made)
    assert desk.champion() is None


def test_the_records_of_another_store_give_no_champion(desk: Desk) -> None:
    made = desk.version(desk.challenger())
    assert desk.promote().exit_code == 0
    desk.client.delete_registered_model_alias(desk.name, "champion")
    champion.restore(dataclasses.replace(client.connect(), uri="http://elsewhere.example"), [made])
    assert desk.champion() is None


def test_rollback_without_a_champion_or_to_a_deleted_version_says_so(desk: Desk) -> None:
    desk.challenger()
    done = desk.rollback()
    assert done.exit_code == 2
    assert "@champion: found no such version, expected a champion to roll back from" in done.stderr
    desk.promote()
    desk.challenger()
    desk.promote()
    desk.client.delete_model_version(desk.name, "1")
    done = desk.rollback()
    assert done.exit_code == 2
    assert "found that version 1, the champion before it, is deleted" in done.stderr
    assert desk.champion() == "2"
    assert len(desk.log) == 2


def test_a_server_is_served_alike_and_its_password_is_never_written(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.mlflow_server() as server:
        promote_at(server, desk, monkeypatch)


def promote_at(server: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promote and roll back at a tracking server whose URL has a password."""
    address = server.removeprefix("http://")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:SECRET@{address}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")  # whose artifacts are the server's, too
    desk = dataclasses.replace(desk, uri=server)
    assert desk.promote().exit_code == 2
    desk.challenger(range(10))
    assert desk.promote().exit_code == 0
    desk.challenger(range(4))
    assert desk.promote().exit_code == 0
    assert desk.champion() == "2"
    assert desk.rollback().exit_code == 0
    assert desk.champion() == "1"
    assert [record["decision"] for record in desk.log] == ["promoted", "promoted", "rolled back"]
    assert desk.records("1") == desk.log[::2]
    assert {record["store"] for record in desk.log} == {server}
    assert "SECRET" not in (desk.folder / "promotions.jsonl").read_text()


def test_of_two_promotions_at_once_one_promotes_and_the_other_finds_it_done(desk: Desk) -> None:
    desk.challenger()
    # Each asks git for a name after it has decided and before it writes: so both would have decided.
    slow = desk.folder / "bin/git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\n[ $1 != config ] || sleep 5\n")
    slow.chmod(0o755)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "mnist", "promote"],
            cwd=desk.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{slow.parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("nothing to do: version 1 is the champion" in output for output in outputs) == [False, True]
    assert len(desk.log) == 1
