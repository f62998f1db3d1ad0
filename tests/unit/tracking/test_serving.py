"""Tests of the check of a request, and of the application around MLflow's."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server

from mnist.tracking import registry, serving
from mnist.tracking.serving import RefusedError
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


def checked(body: bytes | str, *, path: str = "/invocations", content_type: str = "application/json") -> Any:
    sent = body if isinstance(body, bytes) else body.encode()
    return json.loads(serving.checked(sent, path=path, content_type=content_type))


def refused(body: bytes | str, **where: str) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        checked(body, **where)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["inputs", "instances"])
@pytest.mark.parametrize("value", [0, 255, -0])
def test_raw_pixels_pass(name: str, value: int) -> None:
    batch = [[[value] * 28] * 28]
    assert checked(json.dumps({name: batch})) == {"inputs": batch}


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_have_any_case_and_a_charset(content_type: str) -> None:
    assert checked(json.dumps({"inputs": [IMAGE]}), content_type=content_type) == {"inputs": [IMAGE]}


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


@pytest.mark.parametrize("content_type", ["", "application/jsonl"])
def test_another_content_type_is_refused(content_type: str) -> None:
    assert refused(json.dumps({"inputs": [IMAGE]}), content_type=content_type).status == 415


def test_the_size_is_limited() -> None:
    body = json.dumps({"inputs": [IMAGE]})
    assert checked(body + " " * (serving.MAX_BYTES - len(body))) == {"inputs": [IMAGE]}
    assert refused(body + " " * (serving.MAX_BYTES - len(body) + 1)).status == 413


# MLflow's router takes "/invocations\n" for /invocations.
@pytest.mark.parametrize("path", ["/invocations\n", "/invocations/", "/ping"])
def test_other_paths_are_refused(path: str) -> None:
    assert refused(json.dumps({"inputs": [IMAGE]}), path=path).status == 404


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
    guard = serving.Guard(scoring_server.init(PyFuncModel(model_meta=meta, model_impl=Broken())))
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
        "message": "the server failed on a valid request; its terminal shows why",
    }
    assert "a secret of 1 image" in capsys.readouterr().err
