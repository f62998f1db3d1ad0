"""The champion behind HTTP: its answers are those of `evaluate`; no model that could run code is loaded."""

import asyncio
import csv
import http.client
import json
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import onnx
import pytest

from mnist.core import files
from mnist.data import store
from tests import hostile
from tests.checkout import NAME, Clone
from tests.conftest import digits
from tests.e2e.conftest import Invoke, without_store

TIMEOUT_SECONDS = 120  # for a server to start, on a busy machine


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `mnist serve`."""

    process: Popen[str]
    port: int
    log: Path

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """Return status and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def predict(self, images_NHW: Any) -> Any:
        """Return the probabilities of raw images, float (N, K)."""
        status, text = self.request("POST", "/invocations", json.dumps({"inputs": images_NHW.tolist()}))
        assert status == 200, text
        return np.array(json.loads(text)["predictions"])


@contextmanager
def serving(clone: Clone, log: Path) -> Iterator[Server]:
    """Start a server in a clone, and end it."""
    with log.open("w") as output:
        command = [sys.executable, "-X", "importtime", "-m", "mnist", "serve", "--port", "0"]
        environment = clone.environment
        process = Popen(command, cwd=clone.folder, env=environment, stdout=output, stderr=output, text=True)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (address := re.search(r"http://[\d.]+:(\d+)/invocations;", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(process=process, port=int(address[1]), log=log)
    finally:
        process.terminate()
        process.wait(60)


def make_champion(clone: Clone) -> None:
    clone.client.set_registered_model_alias(NAME, "champion", "1")


def test_it_answers_as_evaluate_did_and_ends_at_an_interrupt(trained: Clone, tmp_path: Path) -> None:
    make_champion(trained)
    test = store.load(trained.folder / "data/mnist.safetensors", "test")
    table = trained.folder / "metrics/predictions.csv"
    predicted_N = np.loadtxt(table, delimiter=",", skiprows=1, dtype=int)[:, 2]
    with serving(trained, tmp_path / "log") as server:
        probs_NK = server.predict(test.images_NHW)
        assert probs_NK.shape == (300, 10)
        assert probs_NK.argmax(1).tolist() == predicted_N.tolist()
        np.testing.assert_allclose(probs_NK.sum(1), 1, atol=1e-5)

        async def one_by_one() -> list[Any]:
            images = [test.images_NHW[index : index + 1] for index in range(20)]
            return await asyncio.gather(*(asyncio.to_thread(server.predict, image) for image in images))

        np.testing.assert_allclose(
            np.concatenate(asyncio.run(one_by_one())), probs_NK[:20], rtol=0, atol=1e-6
        )

        for path in ("/ping", "/health", "/version"):
            assert server.request("GET", path)[0] == 200
        # Linux has all of 127.*, so this one stands for any address of the machine but 127.0.0.1.
        with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
            socket.create_connection(("127.0.0.2", server.port), timeout=5)

        idle = socket.create_connection(("127.0.0.1", server.port))  # of a client that may ask again
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        idle.close()
    log = server.log.read_text()
    assert log.endswith("serve: ended\n")
    assert not re.search(r"\| +(torch|mlflow)\b", log)
    assert "Traceback" not in log
    socket.create_server(("127.0.0.1", server.port)).close()  # the port is free at once


def test_a_file_is_scored_by_the_champion_as_by_evaluate(
    trained: Clone, invoke: Invoke, tmp_path: Path
) -> None:
    make_champion(trained)
    images, version = tmp_path / "images.npy", f"models:/{NAME}/1"
    np.save(images, store.load(trained.folder / "data/mnist.safetensors", "test").images_NHW)
    tables = [
        list(csv.DictReader(invoke(trained, "predict", str(images), *options).stdout.splitlines()))
        for options in ([], ["--model", version], ["--model", "models/model.onnx"])
    ]
    assert tables[0] == tables[1] == tables[2]
    with (trained.folder / "metrics/predictions.csv").open() as evaluated:
        wanted = [row["predicted"] for row in csv.DictReader(evaluated)]
    assert [row["predicted"] for row in tables[0]] == wanted
    before = images.read_bytes()
    for command in (["--output", str(images)], ["--model", "models/model.onnx", "--output", str(images)]):
        assert invoke(trained, "predict", str(images), *command).exit_code == 2
        assert images.read_bytes() == before
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    assert invoke(trained, "predict", str(bad), "--output", str(bad)).exit_code == 2
    assert bad.read_bytes() == b"bad"
    unknown = invoke(trained, "predict", str(images), "--model", f"models:/{NAME}/7")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith(f"ERROR: models:/{NAME}/7: found no such version")


def test_drift_is_told_from_200_images_on_and_fresh_ones_are_none(
    trained: Clone, invoke: Invoke, tmp_path: Path
) -> None:
    make_champion(trained)
    fresh_NHW, rng = digits(200, seed=9).images_NHW, np.random.default_rng(0)
    kinds = {
        "fresh": fresh_NHW,
        "inverted": 255 - fresh_NHW,
        "shifted": np.roll(fresh_NHW, 6, axis=1),
        "rotated": np.rot90(fresh_NHW, axes=(1, 2)),
        "noisy": np.clip(fresh_NHW + rng.normal(0, 20, fresh_NHW.shape), 0, 255).astype(np.uint8),
        "garments": np.uint8(127 + 100 * np.sin(rng.uniform(0, 3, (200, 1, 1)) * np.arange(28)))
        + fresh_NHW * 0,
    }
    results = {}
    for name, images_NHW in kinds.items():
        np.save(tmp_path / f"{name}.npy", images_NHW)
        done = invoke(trained, "drift", str(tmp_path / f"{name}.npy"), "--json")
        results[name] = json.loads(done.stdout)
        assert done.exit_code == results[name]["drifted"], done.stderr
        assert results[name]["num_images"] == 200
    assert [name for name, result in results.items() if not result["drifted"]] == ["fresh"]

    (tmp_path / "bad.png").touch()
    done = invoke(trained, "drift", str(tmp_path / "fresh.npy"), str(tmp_path / "bad.png"))
    assert done.exit_code == 2
    assert f"models:/{NAME}/1: no drift" in done.stdout
    assert str(tmp_path / "bad.png") in done.stderr

    # The champion's run is deleted: another one of its weights names their data.
    version, store = trained.client.get_model_version(NAME, "1"), trained.client
    run = store.get_run(str(version.run_id))
    tags = {name: run.data.tags[name] for name in ("weights_sha256", "dataset_sha256")}
    store.delete_run(run.info.run_id)
    done = invoke(trained, "drift", str(tmp_path / "fresh.npy"))
    assert done.exit_code == 2
    assert "`mnist sync` restores runs" in done.stderr
    other = store.create_run(run.info.experiment_id, tags=tags)
    store.set_terminated(other.info.run_id)
    assert invoke(trained, "drift", str(tmp_path / "fresh.npy")).exit_code == 0

    store.set_tag(other.info.run_id, "dataset_sha256", "0" * 64)
    done = invoke(trained, "drift", str(tmp_path / "fresh.npy"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("ERROR: data/mnist.safetensors: found the data ")


def no_champion(clone: Clone) -> None:
    del clone


def no_files(clone: Clone) -> None:
    make_champion(clone)
    shutil.rmtree(clone.folder / "mlartifacts")


@pytest.mark.parametrize(
    ("prepare", "where"),
    [
        (no_champion, f"models:/{NAME}@champion: found no such version"),
        (no_files, f"models:/{NAME}/1/MLmodel: found no such file"),
    ],
)
def test_without_a_usable_champion_it_is_an_error(
    trained: Clone, invoke: Invoke, prepare: Callable[[Clone], None], where: str
) -> None:
    prepare(trained)
    done = invoke(trained, "serve", "--port", "0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ERROR: {where}")
    assert done.stderr.count("\n") == 1


def in_another_file(folder: Path, trace: Path) -> None:
    """Save an ONNX model whose tensors are those of a file outside of its folder."""
    trace.write_bytes(b"\0" * 2**16)
    (trained_model,) = trace.parent.glob("**/mlartifacts/models/m-*/artifacts")
    shutil.copytree(trained_model, folder)
    model = onnx.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=f"../{trace.name}")
    tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    trace.unlink()


@pytest.mark.parametrize("save", [hostile.pickled, hostile.with_code, in_another_file])
def test_a_champion_that_is_another_kind_of_model_is_an_error(
    save: Callable[[Path, Path], None], trained: Clone, invoke: Invoke, tmp_path: Path
) -> None:
    """In every command that loads a model: one line, and nothing that it brings has run."""
    folder, trace = tmp_path / "model", tmp_path / "trace"
    save(folder, trace)
    trace.unlink(missing_ok=True)
    ours = trained.client.get_model_version(NAME, "1")
    file = folder / "model.onnx"
    tags = {**ours.tags, "onnx_sha256": files.sha256(file) if file.exists() else ours.tags["onnx_sha256"]}
    version = trained.client.create_model_version(NAME, folder.as_uri(), ours.run_id, tags=tags)
    trained.client.set_registered_model_alias(NAME, "champion", version.version)
    before = sorted(path for path in trained.folder.rglob("*") if path.suffix not in (".pyc", ".lock"))
    for command in (["serve", "--port", "0"], ["reproduce"], ["predict", "models"]):
        done = invoke(trained, *command, MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")
        assert done.exit_code == 2
        assert done.stderr.startswith(f"ERROR: models:/{NAME}/2/")
        assert done.stderr.count("\n") == 1
        assert not trace.exists()
    after = sorted(path for path in trained.folder.rglob("*") if path.suffix not in (".pyc", ".lock"))
    assert after == before


def test_without_a_model_it_is_an_error(trained: Clone, invoke: Invoke) -> None:
    done = invoke(without_store(trained), "serve", "--port", "0", MLFLOW_TRACKING_URI="sqlite:///new.db")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ERROR: models:/{NAME}@champion: found no store sqlite:///new.db")
    assert not (trained.folder / "new.db").exists()


def test_a_port_in_use_is_an_error_before_anything_else(trained: Clone, invoke: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke(trained, "serve", "--port", str(port))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ERROR: port {port}: found Address already in use")
