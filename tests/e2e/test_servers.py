"""Any tracking server: a real one on PostgreSQL and S3, and one that is down, slow, wrong or forgetful.

The tests on PostgreSQL and S3 are left out where those are not installed, unless
MNIST_REQUIRE_SERVERS is set, as in CI. The tests of each half run in their order, on one clone.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from mnist.core import files, paths
from mnist.training import history
from tests import checkout, servers
from tests.checkout import NAME, STAGES, Clone
from tests.conftest import SmallData
from tests.servers import Exchange, Fault, Proxy

LOCAL_STORES = ("mlflow.db", "mlartifacts", "mlruns")
ARTIFACTS = (
    "params.yaml",
    "metrics/predictions.csv",
    "metrics/plots/errors.png",
    "models/model.safetensors",
)
OUTS = ("models/model.safetensors", "metrics/train.json", "metrics/history.csv", "metrics/steps.csv")
TRAIN = (sys.executable, "-m", "stages.train")
REGISTER = (sys.executable, "-m", "stages.register")
RECONCILE = (sys.executable, "-m", "mnist.cli.sync")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A checkout, and the server that its pipeline talks to."""

    clone: Clone
    client: MlflowClient

    @property
    def folder(self) -> Path:
        """Of the checkout."""
        return self.clone.folder

    def run(self, *command: str, seconds: float = 120, status: int = 0) -> str:
        """What a command prints; it must end in time, with this exit status, and without a traceback."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == status, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def runs(self) -> list[Run]:
        """All runs of the experiment, whatever their status, the newest first."""
        name = self.clone.environment.get("MLFLOW_EXPERIMENT_NAME", "mnist")
        experiment = self.client.get_experiment_by_name(name)
        assert experiment
        return list(self.client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL))

    def versions(self) -> list[ModelVersion]:
        """All versions of the model."""
        return list(self.client.search_model_versions(f"name = '{NAME}'"))

    def spool(self) -> list[Path]:
        """What waits to be told to MLflow."""
        return sorted(path for path in (self.folder / "mlspool").rglob("*") if path.is_file())

    def outs(self) -> dict[str, bytes]:
        """What training makes."""
        return {name: (self.folder / name).read_bytes() for name in OUTS}


def assert_complete(site: Site, run: Run, folder: Path) -> None:
    """The run shows all there is to know of the result in `folder`, and each point once."""
    assert run.info.status == "FINISHED"
    params = YAML(typ="safe").load(folder / "params.yaml")
    assert {name: params[name] for name in run.data.params} == {
        name: type(params[name])(value) if not isinstance(params[name], bool) else value == "True"
        for name, value in run.data.params.items()
    }
    assert {"lr", "epochs", "seed", "n_features"} <= set(run.data.params)
    steps = history.read(folder / "metrics/steps.csv", history.Window)
    epochs = history.read(folder / "metrics/history.csv", history.Epoch)
    for name, expected in (
        ("train_loss", [row.loss for row in steps]),
        ("train_accuracy", [row.accuracy for row in steps]),
        ("epoch_train_loss", [row.train_loss for row in epochs]),
        ("val_accuracy", [row.val_accuracy for row in epochs]),
    ):
        points = site.client.get_metric_history(run.info.run_id, name)
        assert len(points) == len(expected) == len({point.step for point in points})
        values = [point.value for point in sorted(points, key=lambda point: point.step)]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(site.client.get_metric_history(run.info.run_id, "training_seconds")) == 1
    scores = files.read_json(folder / "metrics/test.json")
    assert run.data.metrics["test_accuracy"] == scores["accuracy"]
    assert run.data.tags["weights_sha256"] == files.sha256(folder / "models/model.safetensors")
    assert len(run.data.tags["fingerprint"]) == 64
    assert run.data.tags["rerun"].endswith("dvc repro")
    for name in ARTIFACTS:
        kept = Path(site.client.download_artifacts(run.info.run_id, name))
        assert kept.read_bytes() == (folder / name).read_bytes()
    # The report has the time of day in it, and the run keeps the first one of a result that came twice.
    report = Path(site.client.download_artifacts(run.info.run_id, str(paths.REPORT))).read_text()
    assert run.data.tags["fingerprint"] in report
    assert run.data.tags["weights_sha256"] in report


def assert_told(site: Site) -> Run:
    """MLflow knows one run of what is in the checkout and one version of its weights, and nothing waits."""
    (run,) = site.runs()
    assert_complete(site, run, site.folder)
    weights_sha256 = run.data.tags["weights_sha256"]
    (version,) = (entry for entry in site.versions() if entry.tags["weights_sha256"] == weights_sha256)
    assert site.client.get_model_version_by_alias(NAME, "challenger").version == version.version
    assert f"models:/{NAME}/{version.version}" in str(version.description)
    assert site.spool() == []
    return run


def assert_clean(site: Site) -> None:
    """There is no store in the checkout, and nothing that git would commit beside what DVC makes."""
    assert [name for name in LOCAL_STORES if (site.folder / name).exists()] == []
    untracked = site.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert {line[3:].split("/")[0] for line in untracked} <= {"dvc.lock", "metrics", "params.yaml"}


def site_at(url: str, folder: Path, small_data: SmallData) -> Site:
    """A checkout on the small data that talks to the server at `url`."""
    clone = checkout.clone(folder, small_data)
    clone.environment["MLFLOW_TRACKING_URI"] = url
    clone.environment["PYTHONUNBUFFERED"] = "1"
    return Site(clone=clone, client=MlflowClient(tracking_uri=url, registry_uri=url))


# A server on PostgreSQL and S3.


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The S3 store's environment variables."""
    if missing := servers.missing():
        if os.environ.get("MNIST_REQUIRE_SERVERS"):
            pytest.fail(f"MNIST_REQUIRE_SERVERS is set, and {missing}")
        pytest.skip(missing)
    with servers.s3_store() as environment:
        yield environment


@pytest.fixture(scope="module")
def remote(
    bucket: dict[str, str], small_data: SmallData, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A checkout whose MLflow server keeps its runs in PostgreSQL and its files in S3."""
    folder = tmp_path_factory.mktemp("remote") / "pipeline"
    with (
        servers.postgresql() as database,
        servers.mlflow_server(database, f"s3://{servers.BUCKET}", bucket) as url,
    ):
        yield site_at(url, folder, small_data)
    shutil.rmtree(folder)


def test_the_pipeline_on_postgresql_and_s3_has_its_run_and_its_version(
    remote: Site, bucket: dict[str, str]
) -> None:
    output = remote.run("dvc", "repro")
    assert_clean(remote)
    remote.clone.commit("What the pipeline made")
    assert [stage for stage in STAGES if f"> python -m stages.{stage}" in output] == STAGES
    for noise in ("train: MLflow", "View run", "Downloading artifacts"):  # MLflow's links and bars
        assert noise not in output
    run = assert_told(remote)
    (version,) = remote.versions()
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    with urlopen(f"{bucket['MLFLOW_S3_ENDPOINT_URL']}/{servers.BUCKET}?list-type=2", timeout=30) as answer:
        keys = re.findall("<Key>(.*?)</Key>", answer.read().decode())
    kept = [key for key in keys if run.info.run_id in key]
    assert all(any(key.endswith(f"/artifacts/{name}") for key in kept) for name in ARTIFACTS)
    assert any(key.endswith(".pt2") for key in keys)
    assert any(key.endswith("/README.md") for key in keys)


def test_the_model_on_postgresql_and_s3_loads_and_predicts_as_evaluate_did(
    remote: Site, small_data: SmallData, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", small_data.test.images_NHW)
    code = (
        "import sys, mlflow, numpy as np;"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@challenger');"
        "np.save(sys.argv[2], model.predict(np.load(sys.argv[1])))"
    )
    remote.run(sys.executable, "-c", code, str(tmp_path / "images.npy"), str(tmp_path / "probabilities.npy"))
    probs_NK = np.load(tmp_path / "probabilities.npy")
    table = np.loadtxt(remote.folder / "metrics/predictions.csv", delimiter=",", skiprows=1, dtype=int)
    assert probs_NK.argmax(1).tolist() == table[:, 2].tolist()


def test_a_temporary_tree_on_postgresql_and_s3_has_its_run_and_moves_no_alias(remote: Site) -> None:
    remote.run("dvc", "exp", "run", "--temp", "-S", "lr=0.015", "-n", "aside")
    newest, first = remote.runs()
    assert newest.info.run_name == "aside"
    assert newest.info.status == first.info.status == "FINISHED"
    assert newest.data.params["lr"] == "0.015"
    assert newest.data.tags["dvc.experiments"] == "aside"
    assert Path(remote.client.download_artifacts(newest.info.run_id, "metrics/test.json")).is_file()
    assert {version.run_id for version in remote.versions()} == {newest.info.run_id, first.info.run_id}
    alias = remote.client.get_model_version_by_alias(NAME, "challenger")
    assert alias.run_id == first.info.run_id
    assert remote.spool() == []
    assert remote.run("git", "status", "--porcelain") == ""


def test_the_same_params_again_on_postgresql_and_s3_make_no_second_run_or_version(remote: Site) -> None:
    before = [(run.info.run_id, run.data.to_dictionary()) for run in remote.runs()]
    output = remote.run("dvc", "repro", "--force", "--single-item", "train", "register")
    assert "train: MLflow has this training already" in output
    assert [(run.info.run_id, run.data.to_dictionary()) for run in remote.runs()] == before
    assert len(remote.versions()) == 2
    assert_clean(remote)


# A server that fails.


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """What stands between the pipeline and a sound server."""
    with servers.mlflow_server() as url, servers.faulty_proxy(url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def shared(proxy: Proxy, small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A checkout behind the proxy."""
    folder = tmp_path_factory.mktemp("behind") / "pipeline"
    site = site_at(proxy.url, folder, small_data)
    direct = f"http://{proxy.upstream}"
    yield Site(clone=site.clone, client=MlflowClient(tracking_uri=direct, registry_uri=direct))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def repro_output(shared: Site, proxy: Proxy) -> str:
    """What `dvc repro` prints while the server is down."""
    proxy.fault = "refuse"
    return shared.run("dvc", "repro")


@pytest.fixture
def site(shared: Site, proxy: Proxy, request: pytest.FixtureRequest, repro_output: str) -> Iterator[Site]:
    """The same checkout with an experiment of its own, nothing that waits, and a server that works."""
    assert repro_output
    shared.clone.environment["MLFLOW_EXPERIMENT_NAME"] = request.node.name
    shutil.rmtree(shared.folder / "mlspool", ignore_errors=True)
    proxy.fault, proxy.verdict = "pass", None
    proxy.exchanges.clear()
    yield shared
    proxy.verdict, proxy.fault = None, "pass"
    shared.clone.environment["MLFLOW_TRACKING_URI"] = proxy.url
    shared.clone.environment.pop("MLFLOW_HTTP_REQUEST_TIMEOUT", None)


@pytest.fixture(scope="module")
def undisturbed(shared: Site, proxy: Proxy, repro_output: str) -> dict[str, bytes]:
    """What a training makes of which MLflow hears all."""
    assert repro_output
    proxy.fault = "pass"
    shared.clone.environment["MLFLOW_EXPERIMENT_NAME"] = "undisturbed"
    spool = shared.spool()
    assert "MLflow" not in shared.run(*TRAIN)
    assert shared.spool() == spool
    return shared.outs()


def complaint(output: str, url: str) -> str:
    """The one line that train says of MLflow, which names the server and the remedy."""
    (line,) = (line for line in output.splitlines() if "MLflow" in line)
    assert line.startswith("train: MLflow")
    assert url in line
    assert "make reconcile" in line
    return line


def assert_a_second_reconcile_only_looks(site: Site, proxy: Proxy) -> None:
    proxy.exchanges.clear()
    site.run(*RECONCILE)
    assert proxy.exchanges
    assert [exchange for exchange in proxy.exchanges if is_write(exchange)] == []


def is_write(exchange: Exchange) -> bool:
    return exchange.method != "GET" and not exchange.path.endswith("search")


def test_a_repro_without_the_server_does_all_but_tell_it(
    shared: Site, proxy: Proxy, repro_output: str
) -> None:
    by_train, by_register = repro_output.split("> python -m stages.evaluate")
    assert "connection refused" in complaint(by_train, proxy.url)
    assert len([line for line in by_register.splitlines() if "MLflow" in line]) == 1
    assert shared.spool()
    assert_clean(shared)
    proxy.fault = "pass"
    shared.run(*RECONCILE)
    run = assert_told(shared)
    (version,) = shared.versions()
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    assert_a_second_reconcile_only_looks(shared, proxy)
    assert "> python" not in shared.run("dvc", "repro")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(500, "answer 500"), ("hang", "no answer within 3 s"), ("slow", "in time")],
    ids=["answers 500", "hangs", "is slow"],
)
def test_training_takes_no_harm_from_a_server_that(
    fault: Fault, reason: str, site: Site, proxy: Proxy, undisturbed: dict[str, bytes]
) -> None:
    proxy.delay_seconds = 4  # a request, of which a run takes a dozen
    proxy.fault = fault
    # Slow is an answer that comes before the time-out.
    site.clone.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "6" if fault == "slow" else "3"
    output = site.run(*TRAIN, seconds=60)
    assert reason in complaint(output, proxy.url)
    assert site.outs() == undisturbed
    assert site.spool()
    proxy.fault = "pass"
    site.run(*REGISTER)
    assert_told(site)


@contextmanager
def held_in_the_middle(site: Site) -> Iterator[list[str]]:
    """Train, standing still from the first epoch's end to the block's; yields the lines that it prints."""
    lines: list[str] = []
    with site.clone.start(*TRAIN) as training:
        assert training.stdout
        try:
            for line in training.stdout:
                lines.append(line)
                if "epoch 1/4" in line:
                    break
            training.send_signal(signal.SIGSTOP)
            yield lines
            training.send_signal(signal.SIGCONT)
            lines.extend(training.stdout)
            assert training.wait(timeout=60) == 0, lines
        finally:
            training.kill()


def await_points(proxy: Proxy) -> None:
    """Until a point of the curve has passed the proxy."""
    deadline = time.monotonic() + 60
    while not any(b"train_loss" in seen.body and seen.fault == "pass" for seen in proxy.exchanges):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_dies_in_the_middle_of_training_gets_the_rest_later(
    site: Site, proxy: Proxy, undisturbed: dict[str, bytes]
) -> None:
    with held_in_the_middle(site) as lines:
        await_points(proxy)
        proxy.fault = "refuse"
    complaint("".join(lines), proxy.url)
    assert site.outs() == undisturbed
    (run,) = site.runs()
    assert run.info.status == "RUNNING"
    assert 0 < len(site.client.get_metric_history(run.info.run_id, "train_loss")) < 4
    site.run(*REGISTER)
    assert site.spool()
    proxy.fault = "pass"
    site.run(*RECONCILE)
    assert assert_told(site).info.run_id == run.info.run_id
    assert_a_second_reconcile_only_looks(site, proxy)


def test_a_server_that_comes_back_in_the_middle_of_training_gets_all_of_it(
    site: Site, proxy: Proxy, undisturbed: dict[str, bytes]
) -> None:
    proxy.fault = 503
    with held_in_the_middle(site) as lines:
        deadline = time.monotonic() + 60
        while not proxy.exchanges and time.monotonic() < deadline:
            time.sleep(0.05)
        proxy.fault = "pass"
        await_points(proxy)
    assert "answer 503" in complaint("".join(lines), proxy.url)
    assert not any("View run" in line for line in lines)  # MLflow's links
    assert site.outs() == undisturbed
    assert site.spool() == []
    site.run(*REGISTER)
    assert_told(site)


LOST = ("runs/create", "runs/log-batch", "runs/update", "logged-models", "model-versions/create")


def test_answers_that_are_lost_make_nothing_twice(
    site: Site, proxy: Proxy, undisturbed: dict[str, bytes]
) -> None:
    if site.versions():
        site.client.delete_registered_model(NAME)

    def forgets(path: str, _body: bytes) -> Fault:
        """The first answers of each kind are lost: a run, its points, its end, a model, a version."""
        is_new = all(exchange.path != path for exchange in proxy.exchanges)
        return "drop" if is_new and path.endswith(LOST) else "pass"

    proxy.verdict = forgets
    site.run(*TRAIN)
    assert site.outs() == undisturbed
    site.run(*REGISTER)
    for _ in range(3):
        if site.spool():
            subprocess.run(RECONCILE, cwd=site.folder, env=site.clone.environment, timeout=60, check=False)
    dropped = [exchange.path for exchange in proxy.exchanges if exchange.fault == "drop"]
    assert len(dropped) == len(LOST)
    run = assert_told(site)
    (version,) = site.versions()
    assert version.run_id == run.info.run_id
    assert len(site.client.search_logged_models([run.info.experiment_id])) == 1


def test_a_store_that_refuses_is_a_mistake_of_its_user(
    site: Site, proxy: Proxy, undisturbed: dict[str, bytes]
) -> None:
    proxy.fault = 401
    for uri in (proxy.url, "nonsense://host"):
        site.clone.environment["MLFLOW_TRACKING_URI"] = uri
        output = site.run(*TRAIN, seconds=20)
        complaint(output, uri)
        assert site.outs() == undisturbed
        refused = site.run(*REGISTER, status=1).splitlines()[-1]
        assert refused.startswith(f"ERROR: MLflow at {uri}: found ")
    proxy.fault = "pass"
    site.clone.environment["MLFLOW_TRACKING_URI"] = proxy.url
    site.run(*RECONCILE)
    assert_told(site)  # one run: the second training was the first one again
