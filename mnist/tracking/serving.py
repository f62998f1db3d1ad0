"""Serving of the champion on loopback: MLflow's scoring server behind a check of each request.

MLflow casts its input to the model's uint8: 0.5 becomes 0, true becomes 1, "7" becomes 7, 256 in a
dataframe becomes 0, and the client gets an answer without a warning. The check refuses a request that is not
raw pixels, with a reason.
"""

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from mnist.core import config, paths
from mnist.core.errors import InputError
from mnist.tracking.promotion import CHAMPION

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

    from mnist.tracking.client import Store

HOST = "127.0.0.1"  # there is no password, so only this machine is served
INVOCATIONS = "/invocations"
MAX_BYTES = 32 * 2**20  # of one request: the 10,000 test images are 27 MB of JSON

MAX_SHOWN = 40  # characters of what a client sent, in the reason for its refusal

Pixel = Annotated[int, Field(strict=True, ge=0, le=255)]
Row = Annotated[list[Pixel], Field(min_length=28, max_length=28), FailFast()]
Image = Annotated[list[Row], Field(min_length=28, max_length=28), FailFast()]
BATCH: TypeAdapter[list[list[list[int]]]] = TypeAdapter(
    Annotated[list[Image], Field(min_length=1), FailFast()]
)
REQUEST = '{"inputs": [image, ...]}, an image being 28 rows of 28 raw pixels'
EXPECTED = (  # of the batch and of what is in it, by depth
    "a list of at least one image",
    "an image: a list of 28 rows",
    "a row: a list of 28 pixels",
    "a raw pixel: a whole number from 0 (black) to 255 (white), not scaled",
)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]


class RefusedError(InputError):
    """A request that is not valid.

    Args:
        status: of HTTP, 400 to 499.
        where: the invalid part.
        found: its value.
        expected: a valid value.
    """

    def __init__(self, status: int, where: str, *, found: str, expected: str) -> None:
        super().__init__(where, found=found, expected=expected)
        self.status = status


def checked(body: bytes, *, path: str, content_type: str) -> bytes:
    """Check a request and return a new body for MLflow: `{"inputs": images}`.

    Raises:
        RefusedError: it is not a request for the predictions of raw images.
    """
    # Compared here, not left to MLflow's router, which takes "/invocations\n" too.
    if path != INVOCATIONS:
        raise RefusedError(404, "the path", found=_shown(path), expected=INVOCATIONS)
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "Content-Type", found=_shown(content_type), expected="application/json")
    if len(body) > MAX_BYTES:
        most = f"{MAX_BYTES // 2**20} MiB"
        raise RefusedError(413, "the request", found=f"more than {most}", expected=f"at most {most}")
    try:
        request = from_json(body)
    except ValueError as error:
        raise RefusedError(400, "the request", found=f"no JSON ({error})", expected=REQUEST) from None
    # MLflow has two names for it, and ignores other keys.
    if not isinstance(request, dict) or list(request) not in (["inputs"], ["instances"]):
        raise RefusedError(400, "the request", found=_shown(request), expected=REQUEST)
    ((name, batch),) = request.items()
    try:
        images = BATCH.validate_python(batch)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = name + "".join(f"[{index}]" for index in first["loc"])
        expected = EXPECTED[len(first["loc"])]
        raise RefusedError(400, where, found=_shown(first["input"]), expected=expected) from None
    return to_json({"inputs": images})


def _shown(value: Any) -> str:
    """Describe a value that a client sent."""
    if isinstance(value, list) and value:
        return f"a list of {len(value)}"
    if isinstance(value, dict) and value:
        return f"an object with {', '.join(json.dumps(name[:20]) for name in list(value)[:3])}"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class Guard:
    """An ASGI application that passes only checked requests on to MLflow's.

    Args:
        scoring: MLflow's application, the one that `mlflow models serve` runs.
    """

    def __init__(self, scoring: App) -> None:
        self.scoring = scoring

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.scoring(scope, receive, send)
            return
        sent = await _read(receive)
        content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        try:
            body = await asyncio.to_thread(checked, sent, path=scope["path"], content_type=content_type)
        except RefusedError as error:
            status, answer = error.status, _reason("BAD_REQUEST", str(error))
        else:
            status, answer = await self._score(scope, body, receive)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _score(self, scope: Message, body: bytes, receive: Receive) -> tuple[int, bytes]:
        """Return status and body of MLflow's answer; print the reason for a failure on stderr."""
        requests: list[Message] = [{"type": "http.request", "body": body}]
        responses: list[Message] = []

        async def replay() -> Message:
            return requests.pop() if requests else await receive()

        async def collect(message: Message) -> None:
            responses.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.scoring({**scope, "headers": headers}, replay, collect)
        status = responses[0]["status"]
        answer = b"".join(message.get("body", b"") for message in responses[1:])
        if status == HTTPStatus.OK:
            return status, answer
        # The request was valid. MLflow sends the traceback to the client alone.
        print(f"serve: MLflow answers {status}: {answer.decode()}", file=sys.stderr, flush=True)
        reason = "the server failed on a valid request; its terminal shows why"
        return max(status, 500), _reason("INTERNAL_ERROR", reason)


async def _read(receive: Receive) -> bytes:
    """Read the posted body; of one that is too long, a part that is too long."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if len(body) <= MAX_BYTES:  # the rest is read too: a client that writes does not read the answer
            body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _reason(code: str, message: str) -> bytes:
    """Return an error in the form of MLflow's servers."""
    return json.dumps({"error_code": code, "message": message}).encode()


def find_champion(store: "Store", name: str) -> "ModelVersion":
    """Return the version of the registered model `name` that has the alias `champion`.

    Raises:
        InputError: there is none, or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    from mnist.tracking import client

    where = f"models:/{name}@{CHAMPION}"
    with client.answering(store.uri):
        try:
            return store.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                expected = "one: run `make repro`, then `mnist promote`"
                raise InputError(where, found="no registered model yet", expected=expected) from None
            if error.error_code == "INVALID_PARAMETER_VALUE":  # MLflow's code for a missing alias
                raise InputError(
                    where, found="no champion yet", expected="one: run `mnist promote`"
                ) from None
            raise


def load(store: "Store", version: "ModelVersion") -> "PyFuncModel":
    """Load a registered model, on the CPU: it was exported for that, and MLflow would take a GPU.

    Raises:
        InputError: its files are missing, or it is not a model of this pipeline.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from mnist.tracking import registry

    where = f"models:/{version.name}/{version.version}"
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    try:
        model: PyFuncModel = mlflow.pyfunc.load_model(where, model_config={"device": "cpu"})
    except (MlflowException, OSError) as error:
        raise InputError(where, found=_line(error), expected="a model that loads") from None
    if not registry.is_ours(model.metadata.signature):
        found = _line(model.metadata.signature or "no signature")
        raise InputError(where, found=found, expected=_line(registry.signature(-1)))
    return model


def _line(value: object) -> str:
    return " ".join(str(value).split())


def listen(port: int) -> socket.socket:
    """Listen on a port of the loopback interface; 0 is any free one.

    Raises:
        InputError: the port is taken.
    """
    # Without IPPROTO_TCP asyncio does not set TCP_NODELAY, and each answer takes 45 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # The connections of a server that just ended would keep its port for a minute.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # taken before the model loads
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port}", found=f"{error.strerror}", expected="a free one: `mnist serve --port 5002`"
        ) from None
    return listener


def serve(port: int) -> None:
    """Serve the champion until an interrupt."""
    read = config.load(paths.PARAMS)
    with listen(port) as listener:
        from mnist.tracking import client

        store = client.connect()
        version = find_champion(store, read.model_name)
        import torch
        import uvicorn
        from mlflow.pyfunc import scoring_server

        torch.set_num_threads(read.num_threads)
        app = Guard(scoring_server.init(load(store, version)))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        address = f"http://{HOST}:{listener.getsockname()[1]}{INVOCATIONS}"
        print(
            f"serve: version {version.version} of {version.name} answers at {address}; Ctrl-C ends it",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown
            server.run(sockets=[listener])
    print("serve: ended")
