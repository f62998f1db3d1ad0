"""Requests to the server: what is refused, with which reason, and what it does not wait for."""

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist.core import paths
from mnist.tracking import serving
from mnist.tracking.serving import RefusedError
from mnist.training import onnx_model
from mnist.training.onnx_model import OnnxModel
from tests.conftest import digits

IMAGE = digits(1, seed=5).images_NHW[0].tolist()
FLAT_IMAGE = np.ravel(IMAGE).tolist()


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

PIXELS: dict[str, tuple[Any, str]] = {
    "scaled": (0.5, "0.5"),
    "whole, as a float": (1.0, "1.0"),
    "below": (-1, "-1"),
    "above": (256, "256"),
    "beyond int64": (10**30, str(10**30)),
    "long": (10**60, f"{str(10**60)[:40]}..."),
    "NaN": (float("nan"), "NaN"),
    "true": (True, "true"),
    "digit as a string": ("7", '"7"'),
    "list": ([7], "a list of 1"),
}
INPUTS: dict[str, tuple[Any, str, str, str]] = {
    "empty batch": ([], "inputs", "[]", BATCH),
    "null": (None, "inputs", "null", BATCH),
    "object": ({"a": [IMAGE]}, "inputs", 'an object with "a"', BATCH),
    "image without a batch": (IMAGE, "inputs[0][0]", "0", ROW),
    "batch of batches": ([[IMAGE]], "inputs[0][0][0]", "a list of 28", PIXEL),
    "27 rows": ([IMAGE, IMAGE[1:]], "inputs[1]", "a list of 27", AN_IMAGE),
    "ragged": ([[*IMAGE[:5], IMAGE[5][1:], *IMAGE[6:]]], "inputs[0][5]", "a list of 27", ROW),
}
REQUESTS: dict[str, tuple[bytes | str, str]] = {
    "no JSON": ("hello", "no JSON (expected value at line 1 column 1)"),
    "no UTF-8": (b'{"inputs": "\xe9"}', "no JSON (invalid unicode code point at line 1 column 13)"),
    "thousands of brackets": (
        '{"inputs": ' + "[" * 100_000,
        "no JSON (recursion limit exceeded at line 1 column ",
    ),
    "thousands of digits": ('{"inputs": ' + "9" * 100_000, "no JSON (number out of range at line 1 column "),
    "null": ("null", "null"),
    "both keys": (
        json.dumps({"inputs": [IMAGE], "instances": [IMAGE]}),
        'an object with "inputs", "instances"',
    ),
    "dataframe": (
        json.dumps({"dataframe_split": {"columns": ["image"], "data": [[FLAT_IMAGE]]}}),
        'an object with "dataframe_split"',
    ),
}


def refused(body: bytes | str) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        serving.parse(body if isinstance(body, bytes) else body.encode())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["inputs", "instances"])
@pytest.mark.parametrize("value", [0, 255, -0])
def test_raw_pixels_pass(name: str, value: int) -> None:
    images_NHW = serving.parse(json.dumps({name: [[[value] * 28] * 28]}).encode())
    assert images_NHW.dtype == np.uint8
    assert images_NHW.tolist() == [[[value] * 28] * 28]


@pytest.mark.parametrize(("value", "found"), PIXELS.values(), ids=PIXELS)
def test_a_wrong_pixel_is_named_with_its_place(value: Any, found: str) -> None:
    error = refused(json.dumps({"inputs": with_pixel(value)}))
    assert (error.status, str(error)) == (400, f"inputs[1][3][7]: found {found}, expected {PIXEL}")


@pytest.mark.parametrize(("inputs", "where", "found", "expected"), INPUTS.values(), ids=INPUTS)
def test_a_wrong_shape_is_named_with_its_place(inputs: Any, where: str, found: str, expected: str) -> None:
    error = refused(json.dumps({"inputs": inputs}))
    assert (error.status, str(error)) == (400, f"{where}: found {found}, expected {expected}")


@pytest.mark.parametrize(("body", "found"), REQUESTS.values(), ids=REQUESTS)
def test_another_request_is_refused(body: bytes | str, found: str) -> None:
    error = refused(body)
    assert error.status == 400
    assert str(error).startswith(f"the request: found {found}")


class Broken(OnnxModel):
    """A model that fails at a right request of one image."""

    def predict(self, images_NHW: Any) -> Any:
        if len(images_NHW) == 1:
            raise RuntimeError("a secret of 1 image")
        return super().predict(images_NHW)


@pytest.fixture(scope="module")
def port(scored: Path) -> Iterator[int]:
    """The port of a server in this process, with short deadlines."""
    with pytest.MonkeyPatch.context() as patch, serving.listen(0) as listener:
        patch.setattr(serving, "HEADER_SECONDS", 1)
        patch.setattr(serving, "BODY_SECONDS", 2)
        model, port = onnx_model.load(scored / paths.ONNX), listener.getsockname()[1]
        server = serving.server(Broken(model.about, model.session, model.layers))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield port
        server.should_exit = True
        thread.join(30)


BODY = json.dumps({"inputs": [IMAGE, IMAGE]})
JSON = {"Content-Type": "application/json"}


def request(
    port: int, *, method: str = "POST", path: str = "/invocations", body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Return status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = {**JSON, **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request(method, path, body, sent, encode_chunked=not isinstance(body, str | None))
        response = connection.getresponse()
        assert response.getheader("Connection") == "close"
        text = response.read()
        return response.status, json.loads(text) if text.startswith(b"{") else text.decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("kind", "host"),
    [
        ("application/json; charset=utf-8", "localhost"),
        ("Application/JSON", "localhost:1"),  # by a port that is passed on
        ("application/json", "127.0.0.1:1"),
    ],
)
def test_right_requests_are_answered(kind: str, host: str, port: int, scored: Path) -> None:
    status, answer = request(port, body=BODY, Content_Type=kind, Host=host)
    assert status == 200
    expected_NK = onnx_model.load(scored / paths.ONNX).predict(np.array([IMAGE, IMAGE], np.uint8))
    np.testing.assert_array_equal(np.array(answer["predictions"], np.float32), expected_NK)


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (400, {"body": json.dumps({"inputs": [IMAGE, IMAGE[1:]]})}),
        (400, {"body": BODY, "Host": "example.org"}),
        (400, {"body": BODY, "Host": "localhost.example.org:5001"}),
        (415, {"body": BODY, "Content_Type": "application/jsonl"}),
        (404, {"body": BODY, "path": "/invocations/"}),
        (404, {"method": "GET", "path": "/docs"}),
        (404, {"method": "GET", "path": "/openapi.json"}),
        (405, {"method": "GET"}),
    ],
)
def test_other_requests_are_refused(status: int, asked: dict[str, str], port: int) -> None:
    answer = request(port, **asked)
    assert answer[0] == status
    assert set(answer[1]) <= {"error_code", "message", "detail"}


def test_a_model_that_fails_shows_its_traceback_on_the_terminal_alone(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    status, answer = request(port, body=json.dumps({"inputs": [IMAGE]}))
    assert status == 500
    message = "the server failed on a valid request; its terminal shows why"
    assert answer == {"error_code": "INTERNAL_ERROR", "message": message}
    deadline = time.monotonic() + 10  # it is logged after the answer
    while "a secret of 1 image" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chunks(num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        yield b" " * min(num_bytes, 2**20)
        num_bytes -= 2**20


def test_the_size_is_limited(port: int) -> None:
    assert request(port, body=BODY + " " * (serving.MAX_BYTES - len(BODY)))[0] == 200
    assert request(port, body=BODY + " " * (serving.MAX_BYTES - len(BODY) + 1))[0] == 413
    assert request(port, body=chunks(serving.MAX_BYTES + 1))[0] == 413
    with pytest.raises(OSError, match=r"reset|Broken pipe"):  # a body without an end
        request(port, body=chunks(2**40))


def connect(port: int, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(text)
    return connection


START = b"POST /invocations HTTP/1.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 33554433\r\n\r\n",
        b"Content-Length: 33554433\r\nExpect: 100-continue\r\n\r\n",
        b"Content-Length: 99999999999999999999\r\n\r\n{",
    ],
)
def test_a_length_over_the_limit_is_refused_before_the_body(more: bytes, port: int) -> None:
    begun = time.monotonic()
    with connect(port, START + b"Host: localhost\r\n" + more) as client:
        answer = client.recv(1000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - begun < serving.IDLE_SECONDS  # it does not wait for the client
        while chunk := client.recv(1000):  # and then it closes the connection
            answer += chunk
        assert time.monotonic() - begun < serving.BODY_SECONDS
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"] == "BAD_REQUEST"


def test_a_client_that_writes_on_reads_why_it_is_refused(port: int) -> None:
    large = " " * (serving.MAX_BYTES // 2)
    assert request(port, body=large, Content_Type="text/csv")[0] == 415
    assert request(port, body=large, Host="example.org")[0] == 400


def test_a_client_that_does_not_go_on_is_not_waited_for(port: int) -> None:
    host = b"Host: 127.0.0.1:%d\r\n" % port
    with connect(port, START) as headers, connect(port, START + host + b"Content-Length: 9\r\n\r\n{") as body:
        begun = time.monotonic()
        assert headers.recv(1000) == b""
        assert body.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert 1 < time.monotonic() - begun < 20


def test_no_request_waits_for_large_ones_that_do_not_go_on(port: int) -> None:
    host = b"Host: 127.0.0.1:%d\r\n" % port
    stalled = START + host + b"Content-Length: 3000000\r\n\r\n" + b" " * (serving.LARGE_BYTES + 1)
    large = BODY + " " * serving.LARGE_BYTES
    with contextlib.ExitStack() as clients:
        for num_more, status in ((1, 200), (serving.NUM_LARGE - 1, 503)):
            for _ in range(num_more):
                clients.enter_context(connect(port, stalled))
            time.sleep(0.1)  # until the server has read them
            begun = time.monotonic()
            assert request(port, body=large)[0] == status
            assert request(port, body=BODY)[0] == 200
            assert time.monotonic() - begun < 1
    assert request(port, body=large)[0] == 200


def test_connections_are_limited(port: int) -> None:
    idle = [connect(port, b"") for _ in range(serving.MAX_CONNECTIONS)]
    time.sleep(0.1)
    with connect(port, b"") as one_more:
        assert one_more.recv(1000).startswith(b"HTTP/1.1 503 ")
    for connection in idle:
        assert connection.recv(1000) == b""  # after the deadline
        connection.close()
    assert request(port, method="GET", path="/ping")[0] == 200
