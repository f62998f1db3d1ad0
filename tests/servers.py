"""Real servers for the tests: `mlflow server`, PostgreSQL, an S3 store; and a proxy that fails on purpose.

Each is a context manager: at its end the server is stopped and its folder removed, also where the
process that runs the tests is killed.
"""

import http.client
import importlib.util
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

BUCKET = "mlflow"
TIMEOUT_SECONDS = 90  # for a server to start, on a busy machine

# Runs a server until it ends or our pipe does, which is however we end; then nothing of it is left.
KEEPER = """
import os, select, shutil, signal, subprocess, sys
folder, user, *command = sys.argv[1:]
as_user = {"user": user, "group": int(os.stat(folder).st_gid), "extra_groups": []} if user else {}
server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, **as_user)
signal.signal(signal.SIGINT, signal.SIG_IGN)
while server.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
    pass
os.killpg(0, signal.SIGINT)  # to PostgreSQL, SIGTERM would mean to wait for its clients
try:
    server.wait(20)
except subprocess.TimeoutExpired:
    pass
shutil.rmtree(folder, ignore_errors=True)
os.killpg(0, signal.SIGKILL)
"""


def missing() -> str:
    """Return what the machine lacks for PostgreSQL and the S3 store, and how to get it; empty for nothing."""
    lacking = []
    if not postgres_folder():
        lacking.append("PostgreSQL (apt-get install postgresql)")
    packages = [name for name in ("boto3", "moto", "psycopg") if not importlib.util.find_spec(name)]
    if packages:
        how = ".venv/bin/uv pip install --python .venv/bin/python -r requirements-servers.lock"
        lacking.append(f"the packages {', '.join(packages)} ({how})")
    return "not installed: " + "; ".join(lacking) if lacking else ""


def postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs: on the PATH, or where Debian puts its newest."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = [Path(name) for name in os.environ["PATH"].split(os.pathsep)]
    for folder in (*on_path, *reversed(debian)):
        if all((folder / program).is_file() for program in ("initdb", "postgres", "createdb")):
            return folder
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a new PostgreSQL cluster with an empty database, and yield its URI.

    It listens on a socket in its own folder and nowhere else, so it needs no port and no password.
    """
    programs = postgres_folder()
    assert programs
    user = "" if os.geteuid() else "nobody"  # PostgreSQL refuses to run as root
    folder = new_folder(user)
    make = f"'{programs}/initdb' -D data -U mlflow --auth=trust --encoding=UTF8 --no-locale --no-sync"
    start = f"exec '{programs}/postgres' -D data -k '{folder}' -c listen_addresses= -c fsync=off"

    def ready() -> bool:
        create = [str(programs / "createdb"), "--host", str(folder), "--username", "mlflow", "mlflow"]
        return subprocess.run(create, capture_output=True, check=False).returncode == 0

    with _kept(["/bin/sh", "-c", f"{make} && {start}"], folder=folder, user=user, ready=ready):
        yield f"postgresql://mlflow@/mlflow?host={folder}"


@contextmanager
def s3_store() -> Iterator[dict[str, str]]:
    """Start an S3 store with an empty bucket, and yield the environment variables that lead to it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        return answers(Request(f"{url}/{BUCKET}", method="PUT"))

    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with _kept(command, folder=new_folder(), ready=ready):
        yield {
            "MLFLOW_S3_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def mlflow_server(
    backend: str = "sqlite:///mlflow.db",
    artifacts: str = "artifacts",
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Start an MLflow server with these stores, by default in a folder of its own, and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS", "MLFLOW"))}
    # Jobs are for evaluating language models: their runner would be four more processes.
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", backend, "--artifacts-destination", artifacts, "--workers", "1"),
    ]
    with _kept(
        command,
        folder=new_folder(),
        environment={**inherited, **settings, **(environment or {})},
        ready=lambda: answers(Request(f"{url}/health")),
    ):
        yield url


def new_folder(user: str = "") -> Path:
    """Make a temporary folder of this user, by default ours, where that user can reach it."""
    place = "/tmp" if user else None  # noqa: S108 mkdtemp makes it safe
    folder = Path(tempfile.mkdtemp(prefix="mnist-server-", dir=place))
    if user:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    return folder


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(request: Request) -> bool:
    """Return whether a server answers this request, and not with an error."""
    try:
        with urlopen(request, timeout=5) as response:
            return bool(response.status < 400)
    except (URLError, OSError, http.client.HTTPException):
        return False


@contextmanager
def _kept(
    command: list[str],
    *,
    folder: Path,
    ready: Callable[[], bool],
    user: str = "",
    environment: dict[str, str] | None = None,
) -> Iterator[None]:
    with tempfile.TemporaryFile("w+") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(folder), user, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not ready():
                if keeper.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not start:\n{log.read()}")
                time.sleep(0.1)
            yield
        finally:
            assert keeper.stdin
            keeper.stdin.close()
            keeper.wait(timeout=60)


Fault = Literal["pass", "cut", "hang", "drop", "half", "page", "slow"] | int  # a number is an HTTP status


@dataclass(frozen=True)
class Exchange:
    """A request that the proxy got: method, path, body, and what it did with it."""

    method: str
    path: str
    body: bytes
    fault: Fault


class Proxy(ThreadingHTTPServer):
    """A server before another one, which fails as its attribute `fault` demands.

    - `pass`: hands requests and answers on.
    - `cut`: breaks the connection instead of handing the request on.
    - `hang`: takes requests and does not answer until the fault is another one.
    - `drop`: hands requests on, and breaks the connection instead of answering, so that the server
      has done what the client must take for failed.
    - `half`: the same, after half of the answer.
    - `page`: answers with an HTML page and status 200, as portals do.
    - `slow`: hands requests and answers on, a second later.
    - a number: answers with this HTTP status.

    Args:
        upstream: URL of the other server.
        fault: at first.
        port: that it listens on; 0 for any free one.
    """

    daemon_threads = True

    def __init__(self, upstream: str, fault: Fault, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream, self.fault = urlsplit(upstream).netloc, fault
        self.choose: Callable[[str], Fault] | None = None  # the fault by a request's path, where it is set
        self.exchanges: list[Exchange] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing of clients that have gone away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        proxy = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.choose(self.path) if proxy.choose else proxy.fault
        proxy.exchanges.append(Exchange(self.command, self.path, body, fault))
        while fault == proxy.fault == "hang":
            time.sleep(0.05)
        self.close_connection = fault in ("hang", "cut", "drop", "half")
        if fault in ("hang", "cut"):
            return
        if fault == "slow":
            time.sleep(1)
        if fault == "page":
            self._answer(200, {"Content-Type": "text/html"}, b"<html><body>Sign in</body></html>\n")
            return
        if isinstance(fault, int):
            self._answer(fault, {"Content-Type": "text/plain"}, b"The proxy refuses.\n")
            return
        upstream = http.client.HTTPConnection(proxy.upstream, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        upstream.request(self.command, self.path, body, {**headers, "Host": proxy.upstream})
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        if fault != "drop":
            hop = ("connection", "content-length", "transfer-encoding", "keep-alive")
            kept = {key: value for key, value in response.getheaders() if key.lower() not in hop}
            self._answer(response.status, kept, content, cut=fault == "half")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def faulty_proxy(upstream: str, fault: Fault = "pass", port: int = 0) -> Iterator[Proxy]:
    """Start a proxy before the server at `upstream`, on a port of its own."""
    proxy = Proxy(upstream, fault, port)
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.fault = "cut"
        proxy.shutdown()
        proxy.server_close()
