"""Serving of a model on loopback: a small FastAPI application on onnxruntime.

It speaks MLflow's scoring protocol. MLflow's own server casts its input to the model's uint8: 0.5 becomes 0,
true becomes 1, "7" becomes 7, and the client gets an answer without a warning. This one refuses what is not
raw pixels, with a reason.

Shape suffixes: N images, H rows, W columns.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mnist.core.errors import InputError
from mnist.data.image_files import RAW_PIXEL
from mnist.data.store import Bytes
from mnist.training.onnx_model import OnnxModel

HOST = "127.0.0.1"  # there is no password, so only this machine is served
MAX_CONNECTIONS = 64
MAX_BYTES = 32 * 2**20  # of one request: the 10,000 test images are 27 MB of JSON
LARGE_BYTES = 2**20  # of a request; 64 smaller ones fit into memory
NUM_LARGE = 8  # requests at once that are large; they are scored one by one, which takes more memory
NUM_SCORED = 2  # smaller requests at once
HEADER_SECONDS, BODY_SECONDS = 10, 60  # that a client may take to send them
IDLE_SECONDS = 1  # that a client whose request is refused may pause in writing the rest of it
BUSY = HTTPStatus.SERVICE_UNAVAILABLE
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
    RAW_PIXEL,
)


class RefusedError(InputError):
    """A request that is refused.

    Args:
        status: of HTTP.
        where: the part that is refused.
        found: its value.
        expected: a valid value.
    """

    def __init__(self, status: int, where: str, *, found: str, expected: str) -> None:
        super().__init__(where, found=found, expected=expected)
        self.status = status


class Refusal(JSONResponse):
    """An answer that is sent at once; a client that still writes its request reads it afterwards."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, and leave out the rest of the request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        num_bytes, more = 0, "is_read" not in scope["state"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                while more and num_bytes <= 2 * MAX_BYTES:
                    message = await asyncio.wait_for(receive(), IDLE_SECONDS)
                    num_bytes += len(message.get("body", b""))
                    more = message.get("more_body", False)
        await send({"type": "http.response.body"})


def parse(body: bytes) -> Bytes:
    """Return the raw images, uint8 (N, 28, 28), of the body of a request.

    Raises:
        RefusedError: it holds something else.
    """
    try:
        request = from_json(body)
    except ValueError as error:
        raise RefusedError(400, "the request", found=f"no JSON ({error})", expected=REQUEST) from None
    # MLflow has two names for it, and ignores other keys.
    if not isinstance(request, dict) or list(request) not in (["inputs"], ["instances"]):
        raise RefusedError(400, "the request", found=_shown(request), expected=REQUEST)
    ((name, batch),) = request.items()
    try:
        return np.array(BATCH.validate_python(batch), np.uint8)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = name + "".join(f"[{index}]" for index in first["loc"])
        expected = EXPECTED[len(first["loc"])]
        raise RefusedError(400, where, found=_shown(first["input"]), expected=expected) from None


def _shown(value: Any) -> str:
    """Describe a value that a client sent."""
    if isinstance(value, list) and value:
        return f"a list of {len(value)}"
    if isinstance(value, dict) and value:
        return f"an object with {', '.join(json.dumps(name[:20]) for name in list(value)[:3])}"
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def application(model: OnnxModel) -> FastAPI:
    """Return the application that answers with the probabilities of a model."""

    def check_host(request: Request) -> None:
        """Refuse the pages of other sites, whose name was made to mean this machine."""
        host = request.headers.get("host", "")
        # Not the port: `ssh -L` and `docker -p` have another one.
        if host.partition(":")[0] not in (HOST, "localhost"):
            raise RefusedError(400, "Host", found=_shown(host), expected=f"{HOST} or localhost")

    # Its pages of documentation would load scripts from elsewhere.
    app = FastAPI(
        dependencies=[Depends(check_host)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    large = asyncio.Semaphore(NUM_LARGE)
    scoring = asyncio.Semaphore(NUM_SCORED), asyncio.Semaphore(1)  # of small requests, of large ones

    @app.get("/ping")
    @app.get("/health")
    async def ping() -> Response:
        return Response("\n", media_type="application/json")

    @app.get("/version")
    async def mlflow_version() -> Response:
        return PlainTextResponse(version("mlflow"))

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "Content-Type", found=_shown(kind), expected="application/json")
        async with contextlib.AsyncExitStack() as held:
            body = await _read(request, large, held)
            async with scoring[len(body) > LARGE_BYTES]:
                return Response(await asyncio.to_thread(answer, body), media_type="application/json")

    def answer(body: bytes) -> bytes:
        return to_json({"predictions": model.predict(parse(body)).tolist()})

    @app.exception_handler(RefusedError)
    async def refuse(_request: Request, error: RefusedError) -> Response:
        code = "TEMPORARILY_UNAVAILABLE" if error.status == BUSY else "BAD_REQUEST"
        return Refusal({"error_code": code, "message": str(error)}, error.status)

    @app.exception_handler(Exception)
    async def fail(_request: Request, _error: Exception) -> Response:
        message = "the server failed on a valid request; its terminal shows why"
        return JSONResponse({"error_code": "INTERNAL_ERROR", "message": message}, 500)

    return app


async def _read(request: Request, large: asyncio.Semaphore, held: contextlib.AsyncExitStack) -> bytes:
    """Read the body; a large one holds `large`, and is refused where too many do."""
    most = f"{MAX_BYTES // 2**20} MiB"
    too_long = RefusedError(413, "the request", found=f"more than {most}", expected=f"at most {most}")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_long
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                was_large = len(body) > LARGE_BYTES
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BYTES:
                    raise too_long
                if len(body) > LARGE_BYTES and not was_large:
                    if large.locked():
                        found = f"{NUM_LARGE} requests of more than {LARGE_BYTES // 2**20} MiB"
                        raise RefusedError(BUSY, "the server", found=found, expected="fewer: try again later")
                    await held.enter_async_context(large)
    except TimeoutError:
        expected = f"all of it within {BODY_SECONDS} s"
        raise RefusedError(408, "the request", found="a part", expected=expected) from None
    request.state.is_read = True
    return bytes(body)


class Connection(H11Protocol):
    """One of a limited number of connections, with a deadline for the headers of its request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
            transport.close()
        self.loop.call_later(HEADER_SECONDS, self._expire)

    def _expire(self) -> None:
        if not self.cycle:
            self.transport.close()


def server(model: OnnxModel) -> uvicorn.Server:
    """Return the server of a model; a connection takes one request."""
    settings = uvicorn.Config(
        application(model),
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="warning",
        headers=[("Connection", "close")],
    )
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return uvicorn.Server(settings)


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


def serve(port: int, load: Callable[[], tuple[str, OnnxModel]]) -> None:
    """Serve a model, which `load` returns with its name, until an interrupt."""
    with listen(port) as listener:
        name, model = load()
        port = listener.getsockname()[1]
        print(f"serve: {name} answers at http://{HOST}:{port}/invocations; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown
            server(model).run(sockets=[listener])
    print("serve: ended")
