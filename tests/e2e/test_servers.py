"""Any tracking server: a real one on PostgreSQL and S3, and one that is down, slow, wrong or forgetful.

The test on PostgreSQL and S3 is left out where those are not installed, unless MNIST_REQUIRE_SERVERS is
set, as in CI.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import urlopen

import numpy as np
import pytest
from mlflow import pyfunc
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from mnist.core import files, paths
from tests import checkout, servers
from tests.checkout import Clone
from tests.conftest import SmallData
from tests.e2e.conftest import Invoke, check_complete, without_store
from tests.servers import Exchange, Fault, Proxy

LOCAL_STORES = ("mlflow.db", "mlartifacts", "mlruns")
OUTS = ("models/model.safetensors", "metrics/train.json", "metrics/history.csv", "metrics/steps.csv")
TRAIN = (sys.executable, "-m", "stages.train")
REGISTER = (sys.executable, "-m", "stages.register")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A trained checkout, whose pipeline talks to a server that has never seen its result.

    Attributes:
        clone: the checkout.
        client: of the server.
        name: of the experiment and of the model.
    """

    clone: Clone
    client: MlflowClient
    name: str

    def run(self, *command: str, status: int = 0) -> str:
        """Return what a command prints; it must end with this exit status, and without a traceback."""
        done = self.clone.run(*command, check=False)
        assert done.returncode == status, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def runs(self) -> list[Run]:
        """Return all runs of the experiment, whatever their status, the newest first."""
        experiment = self.client.get_experiment_by_name(self.name)
        assert experiment
        return list(self.client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY))

    def outs(self) -> dict[str, bytes]:
        """Return what training makes."""
        return {name: (self.clone.folder / name).read_bytes() for name in OUTS}


def site_at(url: str, trained: Clone, name: str, client_url: str = "") -> Site:
    """Let a trained clone use the server at `url`, with an experiment and a model of its own."""
    without_store(trained)
    name, client_url = re.sub("[^a-z0-9]+", "-", name), client_url or url
    trained.environment["MLFLOW_TRACKING_URI"] = url
    trained.environment["MLFLOW_EXPERIMENT_NAME"] = name
    # `mnist.tracking.client` sets it when it is imported; a command in this process does not see that.
    trained.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    checkout.edit(trained, "params.yaml", "{dataset}-simplecnn", name)
    return Site(
        clone=trained, client=MlflowClient(tracking_uri=client_url, registry_uri=client_url), name=name
    )


def assert_complete(site: Site) -> Run:
    """Check that MLflow has one run of the result here, and one version and model, and no local store."""
    (run,) = site.runs()
    check_complete(site.client, run)
    assert run.data.tags["weights_sha256"] == files.sha256(site.clone.folder / paths.WEIGHTS)
    (version,) = site.client.search_model_versions(f"name = '{site.name}'")
    assert len(site.client.search_logged_models([run.info.experiment_id])) == 1
    assert site.client.get_model_version_by_alias(site.name, "challenger").version == version.version
    assert [name for name in LOCAL_STORES if (site.clone.folder / name).exists()] == []
    return run


# A server on PostgreSQL and S3.


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The S3 store's environment variables."""
    if missing := servers.missing():
        if os.environ.get("MNIST_REQUIRE_SERVERS"):
            pytest.fail(f"MNIST_REQUIRE_SERVERS is set, and {missing}")
        pytest.skip(missing)
    with servers.s3_store() as environment:
        yield environment


@pytest.fixture
def remote(bucket: dict[str, str], trained: Clone) -> Iterator[Site]:
    """A checkout whose MLflow server keeps its runs in PostgreSQL and its files in S3."""
    with (
        servers.postgresql() as database,
        servers.mlflow_server(database, f"s3://{servers.BUCKET}", bucket) as url,
    ):
        yield site_at(url, trained, "remote")


def test_the_pipeline_on_postgresql_and_s3(
    remote: Site, bucket: dict[str, str], small_data: SmallData
) -> None:
    output = remote.run("dvc", "repro", "--force", "--single-item", "train", "register")
    for noise in ("train: MLflow", "View run", "Downloading artifacts"):  # MLflow's links and bars
        assert noise not in output
    run = assert_complete(remote)
    with urlopen(f"{bucket['MLFLOW_S3_ENDPOINT_URL']}/{servers.BUCKET}?list-type=2", timeout=30) as answer:
        keys = re.findall("<Key>(.*?)</Key>", answer.read().decode())
    assert all(
        any(key.endswith(f"{run.info.run_id}/artifacts/{name}") for key in keys) for name in paths.ARTIFACTS
    )
    assert any(key.endswith("/README.md") for key in keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", remote.clone.environment["MLFLOW_TRACKING_URI"])
        model = pyfunc.load_model(f"models:/{remote.name}@challenger")
    table = np.loadtxt(remote.clone.folder / "metrics/predictions.csv", delimiter=",", skiprows=1, dtype=int)
    probs_NK = model.predict(small_data.test.images_NHW)["probabilities"]
    assert probs_NK.argmax(1).tolist() == table[:, 2].tolist()

    remote.run("dvc", "exp", "run", "--temp", "-S", "lr=0.015", "-n", "aside")
    newest, first = remote.runs()
    assert first.info.run_id == run.info.run_id
    assert (newest.info.run_name, newest.info.status) == ("aside", "FINISHED")
    versions = remote.client.search_model_versions(f"name = '{remote.name}'")
    assert {version.run_id for version in versions} == {newest.info.run_id, first.info.run_id}
    alias = remote.client.get_model_version_by_alias(remote.name, "challenger")
    assert alias.run_id == first.info.run_id


# A server that fails.


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a sound server, on which each test has an experiment and a model of its own."""
    with servers.mlflow_server() as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    """What stands between the pipeline and that server."""
    with servers.faulty_proxy(server) as proxy:
        yield proxy


@pytest.fixture
def site(trained: Clone, server: str, proxy: Proxy, request: pytest.FixtureRequest) -> Site:
    """A checkout behind the proxy."""
    return site_at(proxy.url, trained, request.node.name, server)


@contextmanager
def held_in_the_middle(site: Site) -> Iterator[subprocess.Popen[str]]:
    """Train, standing still from the first epoch's end to the block's."""
    with site.clone.start(*TRAIN, PYTHONUNBUFFERED="1") as training:
        assert training.stdout
        try:
            assert any("epoch 1/4" in line for line in training.stdout)
            training.send_signal(signal.SIGSTOP)
            yield training
            training.send_signal(signal.SIGCONT)
            output = training.stdout.read()
            assert training.wait(timeout=120) == 0, output
        finally:
            training.kill()


def assert_line(training: subprocess.Popen[str], *words: str) -> None:
    """Wait for the line about MLflow of a training that stands still; it has these words."""
    assert training.stdout
    line = next(line for line in training.stdout if "mlflow" in line.lower())
    assert line.startswith("train: ")
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("fault", "reason"), [(500, "answer 500"), ("hang", "no answer within 3 s")], ids=["answers 500", "hangs"]
)
def test_training_takes_no_harm_from_a_server_that(
    fault: Fault, reason: str, site: Site, proxy: Proxy, invoke: Invoke
) -> None:
    before, proxy.fault = site.outs(), fault
    site.clone.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "3"
    with held_in_the_middle(site) as training:
        assert_line(training, f"MLflow at {proxy.url} does not answer", reason)
    assert site.outs() == before
    proxy.fault = "pass"
    assert invoke(site.clone, "sync").exit_code == 0
    assert_complete(site)
    proxy.exchanges.clear()
    assert invoke(site.clone, "sync").exit_code == 0  # and only looks
    assert proxy.exchanges
    assert [exchange for exchange in proxy.exchanges if is_write(exchange)] == []


def is_write(exchange: Exchange) -> bool:
    return exchange.method != "GET" and not exchange.path.endswith("search")


def await_exchange(proxy: Proxy, *, word: bytes = b"", fault: Fault) -> None:
    """Wait until a request with this word in its body has got this answer."""
    deadline = time.monotonic() + 120
    while not any(word in seen.body and seen.fault == fault for seen in proxy.exchanges):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_dies_in_the_middle_of_training_gets_the_rest_later(
    site: Site, proxy: Proxy, invoke: Invoke
) -> None:
    with held_in_the_middle(site):
        await_exchange(proxy, word=b"train/loss", fault="pass")
        proxy.fault = "cut"
    (run,) = site.runs()
    assert run.info.status == "RUNNING"
    assert 0 < len(site.client.get_metric_history(run.info.run_id, "train/loss")) < 4
    proxy.fault = "pass"
    assert invoke(site.clone, "sync").exit_code == 0
    assert assert_complete(site).info.run_id == run.info.run_id


def test_a_server_that_comes_back_in_the_middle_of_training_gets_all_of_it(site: Site, proxy: Proxy) -> None:
    proxy.fault = 503
    with held_in_the_middle(site) as training:
        assert_line(training, proxy.url, "answer 503")
        proxy.fault = "pass"
        await_exchange(proxy, word=b"train/loss", fault="pass")
    site.run(*REGISTER)
    assert_complete(site)


LOST = ("runs/create", "runs/log-batch", "runs/update", "logged-models", "model-versions/create")


def test_answers_that_are_lost_make_nothing_twice(site: Site, proxy: Proxy, invoke: Invoke) -> None:
    def forgets(path: str) -> Fault:
        """Lose the first answer of each kind: a run, its points, its end, a model, a version."""
        is_new = all(exchange.path != path for exchange in proxy.exchanges)
        return "drop" if is_new and path.endswith(LOST) else "pass"

    proxy.choose = forgets
    site.run(*TRAIN)
    for _ in range(len(LOST) + 1):
        if invoke(site.clone, "sync").exit_code == 0:
            break
    assert len([exchange for exchange in proxy.exchanges if exchange.fault == "drop"]) == len(LOST)
    assert_complete(site)


def test_a_store_that_refuses_is_a_mistake_of_its_user(site: Site, proxy: Proxy) -> None:
    before, proxy.fault = site.outs(), 401
    for uri, where in ((proxy.url, f"MLflow at {proxy.url}"), ("foo://host", "MLFLOW_TRACKING_URI")):
        site.clone.environment["MLFLOW_TRACKING_URI"] = uri
        with held_in_the_middle(site) as training:
            assert_line(training, f"{where}: found ")
        assert site.outs() == before
        assert f"ERROR: {where}: found " in site.run(*REGISTER, status=1)
