"""The champion behind HTTP: its answers are those of `evaluate`, and what is not raw pixels is refused."""

import asyncio
import dataclasses
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from mnist.cli import serve
from mnist.core import config, paths
from mnist.core.config import Architecture, Recipe
from mnist.tracking import promotion, registry
from mnist.training import loop, model
from tests.checkout import NAME
from tests.conftest import DIGITS, SmallData, digits

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
PATIENCE_SECONDS = 120  # for a server to start, on a busy machine
JSON = {"Content-Type": "application/json"}
IMAGE = digits(1, seed=5).images_NHW[0].tolist()
FLAT_IMAGE = np.ravel(IMAGE).tolist()

# In a process of its own: it changes MLflow's global state, and torch's exporter warns.
REGISTER = """
import sys
from pathlib import Path
from mnist.core import files
from mnist.tracking import client, registry
from mnist.training import model
name, weights = sys.argv[1], Path(sys.argv[2])
store = client.connect()
run = store.client.create_run(store.experiment_id, tags={"rerun": "dvc repro"})
version, _ = registry.ensure(
    store, run, model.load(weights), name=name, weights_sha256=files.sha256(weights), accuracy=0.9, card="# A"
)
store.client.set_registered_model_alias(name, "champion", version.version)
"""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store of its own for a test."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """In which our tools find the store."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DVC", "MLFLOW"))}
        return {**inherited, "DVC_ROOT": str(self.folder), **self.extra}

    @property
    def client(self) -> MlflowClient:
        uri = f"sqlite:///{self.folder}/mlflow.db"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def make_champion(self, source: Path) -> None:
        """Register a folder as a model, with the alias."""
        self.client.create_registered_model(NAME)
        version = self.client.create_model_version(NAME, source=source.as_uri())
        self.client.set_registered_model_alias(NAME, promotion.CHAMPION, version.version)


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    text: str
    content_type: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `python -m mnist.cli.serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(
                status=response.status,
                text=response.read().decode(),
                content_type=response.headers.get("Content-Type", ""),
            )
        finally:
            connection.close()

    def post(self, body: Any, headers: dict[str, str] | None = None) -> Answer:
        text = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.ask("POST", "/invocations", text, JSON if headers is None else headers)


@contextmanager
def serving(store: Store, log: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "mnist.cli.serve", "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=store.environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (address := re.search(r"http://[\d.]+:(\d+)/invocations;", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(process=process, port=int(address[1]), log=log)
    finally:
        process.terminate()
        process.wait(60)


def starts(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool where it must not start."""
    command = [sys.executable, "-m", "mnist.cli.serve", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=store.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


@pytest.fixture(scope="module")
def classifier() -> model.Classifier:
    """Trained for a moment, so that its answers differ from image to image."""
    torch.set_num_threads(1)
    architecture = Architecture(model="simple_cnn", n_features=6, permute_pixels=False)
    recipe = config.load(ROOT / paths.PARAMS).only(Recipe).model_dump()
    recipe |= {"epochs": 3, "batch_size": 16, "lr": 0.02, "momentum": 0.9, "schedule": "one_cycle"}
    made = model.build(architecture, classes=DIGITS.classes, seed=0, mean=0.13, std=0.31)
    images = digits(1200, seed=0)
    list(
        loop.fit(
            made,
            train=images,
            val=images,
            recipe=Recipe(**recipe),
            seed=0,
            device=CPU,
            precision="float32",
        )
    )
    return made.eval()


@pytest.fixture(scope="module")
def champion(classifier: model.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the classifier as its champion."""
    folder = tmp_path_factory.mktemp("store")
    weights = folder / "model.safetensors"
    model.save(weights, classifier, Architecture(model="simple_cnn", n_features=6, permute_pixels=False))
    store = Store(folder=folder)
    command = [sys.executable, "-c", REGISTER, NAME, str(weights)]
    done = subprocess.run(
        command, cwd=ROOT, env=store.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def server(champion: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    # What MLflow would choose on a machine with a GPU, where a model exported for the CPU does not load.
    as_on_gpu = dataclasses.replace(champion, extra={"MLFLOW_DEFAULT_PREDICTION_DEVICE": "cuda"})
    with serving(as_on_gpu, log) as running:
        yield running
    assert running.process.returncode == 0  # a request to terminate is no failure
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without anything in it, to be copied: MLflow needs seconds to make one."""
    store = Store(folder=tmp_path_factory.mktemp("new"))
    store.client.search_registered_models()
    return store.folder / "mlflow.db"


@pytest.fixture
def empty(new_store: Path, tmp_path: Path) -> Store:
    shutil.copy(new_store, tmp_path)
    return Store(folder=tmp_path)


# ---- right requests


@pytest.mark.parametrize("name", ["inputs", "instances"])
@pytest.mark.parametrize("num_images", [1, 2, 300])
def test_the_answers_are_those_of_evaluate(
    server: Server, classifier: model.Classifier, small_data: SmallData, num_images: int, name: str
) -> None:
    images = small_data.test.take(np.arange(num_images))
    log_probs_NK = model.log_probabilities(classifier, images, CPU).numpy()

    answer = server.post({name: images.images_NHW.tolist()})

    assert (answer.status, list(answer.json)) == (200, ["predictions"])
    served_NK = np.array(answer.json["predictions"], np.float32)
    assert served_NK.shape == (num_images, 10)
    assert np.allclose(served_NK, np.exp(log_probs_NK), rtol=0, atol=1e-6)
    assert (served_NK.argmax(1) == log_probs_NK.argmax(1)).all()
    if num_images == len(small_data.test):
        assert len(set(log_probs_NK.argmax(1))) == 10  # or else the comparison says little


@pytest.mark.parametrize("value", [0, 255, -0])
def test_every_pixel_value_is_taken_to_the_ends(server: Server, value: int) -> None:
    assert server.post({"inputs": [[[value] * 28] * 28]}).status == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_json_however_it_is_called(server: Server, content_type: str) -> None:
    assert server.post({"inputs": [IMAGE]}, {"Content-Type": content_type}).status == 200


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_mlflows_other_pages_are_there(server: Server, path: str) -> None:
    answer = server.ask("GET", path)
    assert answer.status == 200
    assert path != "/version" or re.fullmatch(r"\d+\.\d+\.\d+", answer.text)


def test_requests_side_by_side_each_get_their_own_answer(server: Server, small_data: SmallData) -> None:
    async def ask_all() -> list[Answer]:
        images = small_data.test.images_NHW[:20]
        return await asyncio.gather(
            *(asyncio.to_thread(server.post, {"inputs": [image.tolist()]}) for image in images)
        )

    together = server.post({"inputs": small_data.test.images_NHW[:20].tolist()}).json["predictions"]
    alone = [answer.json["predictions"][0] for answer in asyncio.run(ask_all())]
    assert np.allclose(alone, together, rtol=0, atol=1e-6)


def test_an_answer_does_not_wait_for_acknowledgements(server: Server) -> None:
    body = json.dumps({"inputs": [IMAGE]})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        connection.request("POST", "/invocations", body, JSON)
        connection.getresponse().read()
        seconds.append(time.perf_counter() - start)
    connection.close()
    assert min(seconds) < 0.03  # 3 ms, and 44 ms where they wait


# ---- wrong requests


def with_pixel(value: Any) -> list[Any]:
    """Two images, one pixel of the second of which is `value`."""
    images = [[list(row) for row in IMAGE], [list(row) for row in IMAGE]]
    images[1][3][7] = value
    return images


PIXEL = "a raw pixel: a whole number from 0 (black) to 255 (white), not scaled"
BATCH, AN_IMAGE, ROW = (
    "a list of at least one image",
    "an image: a list of 28 rows",
    "a row: a list of 28 pixels",
)
REQUEST = '{"inputs": [image, ...]}, an image being 28 rows of 28 raw pixels'

PIXELS: dict[str, tuple[Any, str]] = {
    "scaled": (0.5, "0.5"),
    "fraction": (3.7, "3.7"),
    "whole, as a float": (1.0, "1.0"),
    "below": (-1, "-1"),
    "above": (256, "256"),
    "far above": (1e9, "1000000000.0"),
    "beyond int64": (10**30, str(10**30)),
    "long": (10**60, f"{str(10**60)[:40]}..."),
    "NaN": (float("nan"), "NaN"),
    "infinity": (float("inf"), "Infinity"),
    "minus infinity": (float("-inf"), "-Infinity"),
    "true": (True, "true"),
    "null": (None, "null"),
    "digit as a string": ("7", '"7"'),
    "word": ("x", '"x"'),
    "list": ([7], "a list of 1"),
    "object": ({"a": 1}, 'an object with "a"'),
}
INPUTS: dict[str, tuple[Any, str, str, str]] = {
    "empty batch": ([], "inputs", "[]", BATCH),
    "null": (None, "inputs", "null", BATCH),
    "number": (5, "inputs", "5", BATCH),
    "string": ("/etc/passwd", "inputs", '"/etc/passwd"', BATCH),
    "object": ({"a": [IMAGE]}, "inputs", 'an object with "a"', BATCH),
    "image without a batch": (IMAGE, "inputs[0][0]", "0", ROW),
    "batch of batches": ([[IMAGE]], "inputs[0][0][0]", "a list of 28", PIXEL),
    "flat image": ([FLAT_IMAGE], "inputs[0][0]", "0", ROW),
    "27 rows": ([IMAGE, IMAGE[1:]], "inputs[1]", "a list of 27", AN_IMAGE),
    "29 rows": ([[*IMAGE, IMAGE[0]]], "inputs[0]", "a list of 29", AN_IMAGE),
    "27 columns": ([[row[1:] for row in IMAGE]], "inputs[0][0]", "a list of 27", ROW),
    "29 columns": ([[[*row, 0] for row in IMAGE]], "inputs[0][0]", "a list of 29", ROW),
    "ragged": ([[*IMAGE[:5], IMAGE[5][1:], *IMAGE[6:]]], "inputs[0][5]", "a list of 27", ROW),
    "null image": ([IMAGE, None], "inputs[1]", "null", AN_IMAGE),
    "empty image": ([[]], "inputs[0]", "[]", AN_IMAGE),
    "empty row": ([[[]] * 28], "inputs[0][0]", "[]", ROW),
}
REQUESTS: dict[str, tuple[bytes | str, str]] = {
    "empty body": ("", "no JSON (EOF while parsing a value at line 1 column 0)"),
    "no JSON": ("hello", "no JSON (expected value at line 1 column 1)"),
    "no UTF-8": (b'{"inputs": "\xe9"}', "no JSON (invalid unicode code point at line 1 column 13)"),
    "cut off": (json.dumps({"inputs": [IMAGE]})[:-2], "no JSON (EOF while parsing a list at line 1 column "),
    "two documents": ("{} {}", "no JSON (trailing characters at line 1 column 4)"),
    "thousands of brackets": (
        '{"inputs": ' + "[" * 100_000,
        "no JSON (recursion limit exceeded at line 1 column ",
    ),
    "thousands of digits": ('{"inputs": ' + "9" * 100_000, "no JSON (number out of range at line 1 column "),
    "null": ("null", "null"),
    "list": (json.dumps([IMAGE]), "a list of 1"),
    "no keys": ("{}", "{}"),
    "both keys": (
        json.dumps({"inputs": [IMAGE], "instances": [IMAGE]}),
        'an object with "inputs", "instances"',
    ),
    "another key beside": (
        json.dumps({"inputs": [IMAGE], "params": {}}),
        'an object with "inputs", "params"',
    ),
    "dataframe": (
        json.dumps({"dataframe_split": {"columns": ["image"], "data": [[FLAT_IMAGE]]}}),
        'an object with "dataframe_split"',
    ),
    "records": (
        json.dumps({"dataframe_records": [{"image": FLAT_IMAGE}]}),
        'an object with "dataframe_records"',
    ),
    "a chat": (json.dumps({"messages": [IMAGE]}), 'an object with "messages"'),
}


def assert_refused(answer: Answer, status: int, message: str) -> None:
    assert answer.status == status, answer.text
    assert answer.content_type == "application/json"
    assert answer.json == {"error_code": "BAD_REQUEST", "message": answer.json["message"]}
    assert answer.json["message"].startswith(message)
    assert "\n" not in answer.json["message"]


@pytest.mark.parametrize(("value", "found"), PIXELS.values(), ids=PIXELS)
def test_a_wrong_pixel_is_refused_where_it_stands(server: Server, value: Any, found: str) -> None:
    message = f"inputs[1][3][7]: found {found}, expected {PIXEL}"
    assert_refused(server.post({"inputs": with_pixel(value)}), 400, message)


@pytest.mark.parametrize(("inputs", "where", "found", "expected"), INPUTS.values(), ids=INPUTS)
def test_a_wrong_shape_is_refused_where_it_is(
    server: Server, inputs: Any, where: str, found: str, expected: str
) -> None:
    assert_refused(server.post({"inputs": inputs}), 400, f"{where}: found {found}, expected {expected}")


@pytest.mark.parametrize(("body", "found"), REQUESTS.values(), ids=REQUESTS)
def test_what_is_no_request_is_refused(server: Server, body: bytes | str, found: str) -> None:
    answer = server.post(body)
    assert_refused(answer, 400, f"the request: found {found}")
    assert answer.json["message"].endswith(f", expected {REQUEST}")


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "text/csv", "application/vnd.apache.parquet", "application/jsonl"]
)
def test_what_is_not_called_json_is_refused(server: Server, content_type: str) -> None:
    answer = server.post({"inputs": [IMAGE]}, {"Content-Type": content_type} if content_type else {})
    assert_refused(answer, 415, f'Content-Type: found "{content_type}", expected application/json')


def test_a_request_that_is_too_long_is_refused_and_the_server_lives_on(server: Server) -> None:
    body = json.dumps({"inputs": [IMAGE]})
    assert server.post(body + " " * (serve.MAX_BYTES - len(body))).status == 200
    answer = server.post(body + " " * (serve.MAX_BYTES - len(body) + 1))
    assert_refused(answer, 413, "the request: found more than 32 MiB, expected at most 32 MiB")
    assert server.post(body).status == 200


# "/invocations%0A" is one that MLflow's router takes for /invocations.
@pytest.mark.parametrize("path", ["/invocations%0A", "/invocations/", "//invocations", "/ping", "/"])
def test_no_other_path_leads_past_the_check(server: Server, path: str) -> None:
    answer = server.ask("POST", path, json.dumps({"inputs": with_pixel(0.5)}), JSON)
    assert_refused(answer, 404, f"the path: found {json.dumps(unquote(path))}, expected /invocations")


class Broken:
    """A model that fails at a right request."""

    def predict(self, images_NHW: Any) -> Any:
        raise RuntimeError(f"a secret of {len(images_NHW)} image")


def test_a_model_that_fails_shows_its_traceback_on_the_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # MLflow sets it, for good
    meta = Model(signature=registry.signature(10))
    meta.add_flavor("python_function", loader_module="none", python_version="3")
    guard = serve.Guard(scoring_server.init(PyFuncModel(model_meta=meta, model_impl=Broken())))
    requests = [
        {"type": "http.request", "body": json.dumps({"inputs": [IMAGE]}).encode(), "more_body": False}
    ]
    responses: list[Any] = []

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        responses.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/invocations",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "http_version": "1.1",
    }
    asyncio.run(guard(scope, receive, send))

    start, body = responses
    assert start["status"] == 500
    assert json.loads(body["body"]) == {
        "error_code": "INTERNAL_ERROR",
        "message": "the server failed at a request that is right: what it says of that is on its terminal",
    }
    assert "a secret of 1 image" in capsys.readouterr().err


# ---- start and end


def no_model(store: Store) -> None:
    del store


def no_champion(store: Store) -> None:
    store.client.create_registered_model(NAME)


def files_gone(store: Store) -> None:
    store.make_champion(store.folder / "gone")


CHAMPION = f"models:/{NAME}@champion"
NOT_READY = {
    "no model": (
        no_model,
        f"{CHAMPION}: found no registered model yet, expected one: run `make repro`, then `make promote`",
    ),
    "no champion": (no_champion, f"{CHAMPION}: found no champion yet, expected one: run `make promote`"),
    "files gone": (files_gone, f"models:/{NAME}/1: found "),
}


@pytest.mark.parametrize(("prepare", "line"), NOT_READY.values(), ids=NOT_READY)
def test_without_a_champion_it_says_what_to_do(
    empty: Store, prepare: Callable[[Store], None], line: str
) -> None:
    prepare(empty)
    assert_one_line(starts(empty, "--port", "0"), line)


def test_a_champion_of_another_kind_is_not_served(champion: Store, empty: Store) -> None:
    source = urlparse(champion.client.get_model_version_download_uri(NAME, "1")).path
    other = Path(shutil.copytree(source, empty.folder / "other"))
    meta = Model.load(other)
    scaled = Schema([TensorSpec(np.dtype(np.float32), (-1, 28, 28))])
    meta.signature = ModelSignature(scaled, meta.signature.outputs)
    meta.save(str(other / "MLmodel"))
    empty.make_champion(other)

    done = starts(empty, "--port", "0")

    assert_one_line(done, f"models:/{NAME}/1: found inputs: [Tensor('float32', (-1, 28, 28))]")
    assert "expected inputs: [Tensor('uint8', (-1, 28, 28))]" in done.stderr


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    away = Store(folder=tmp_path, extra={"MLFLOW_TRACKING_URI": uri})
    done = starts(away, "--port", "0")
    assert_one_line(done, "MLflow")
    assert uri in done.stderr
    assert "connection refused" in done.stderr


def test_a_port_in_use_is_one_line_before_anything_else(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = starts(Store(folder=tmp_path), "--port", str(port))
    line = f"port {port}: found Address already in use, expected a free one: `make serve PORT=5002`"
    assert_one_line(done, line)
    assert not list(tmp_path.iterdir())


def assert_one_line(done: subprocess.CompletedProcess[str], line: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"ERROR: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_what_is_no_port_is_refused(tmp_path: Path, port: str) -> None:
    done = starts(Store(folder=tmp_path), "--port", port)
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_it_cleanly(champion: Store, tmp_path: Path) -> None:
    with serving(champion, tmp_path / "log") as running:
        idle = socket.create_connection(("127.0.0.1", running.port))  # as of a client that may ask again
        assert running.post({"inputs": [IMAGE]}).status == 200
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0
        idle.close()
    told = running.log.read_text()
    assert told.endswith("serve: ended\n")
    assert "Traceback" not in told
    socket.create_server(("127.0.0.1", running.port)).close()  # its port is free at once


def test_nobody_beyond_loopback_is_served(server: Server) -> None:
    # Linux has all of 127.*, so that this one stands for any address of the machine but 127.0.0.1.
    with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)
