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
PATIENCE_SECONDS = 90  # for a server to start, on a busy machine

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
    """What the machine lacks for PostgreSQL and the S3 store, and how to get it; empty for nothing."""
    lacking = []
    if not postgres_folder():
        lacking.append("PostgreSQL (apt-get install postgresql)")
    packages = [name for name in ("boto3", "moto", "psycopg") if not importlib.util.find_spec(name)]
    if packages:
        how = ".venv/bin/uv pip install --python .venv/bin/python -r requirements-servers.lock"
        lacking.append(f"the packages {', '.join(packages)} ({how})")
    return "not installed: " + "; ".join(lacking) if lacking else ""


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are: on the PATH, or where Debian puts its newest."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = [Path(name) for name in os.environ["PATH"].split(os.pathsep)]
    for folder in (*on_path, *reversed(debian)):
        if all((folder / program).is_file() for program in ("initdb", "postgres", "createdb")):
            return folder
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """A new PostgreSQL cluster with an empty database; yields its URI.

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
    """An S3 store with an empty bucket; yields the environment variables that lead to it."""
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
    """An MLflow server with these stores, by default in a folder of its own; yields its URL."""
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
    """A folder of this user, by default ours, in the first place for temporary files that it can reach."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 mkdtemp makes it safe
        parents = [Path(place).resolve(), *Path(place).resolve().parents]
        if not user or all(parent.stat().st_mode & 1 for parent in parents):
            break
    else:
        raise AssertionError(f"no folder for temporary files that {user} can reach")
    folder = Path(tempfile.mkdtemp(prefix="mnist-server-", dir=place))
    if user:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    return folder


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(request: Request) -> bool:
    """Whether a server answers this request, and not with an error."""
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
            deadline = time.monotonic() + PATIENCE_SECONDS
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


Fault = Literal["pass", "refuse", "hang", "drop"] | int  # a number is an HTTP status
Verdict = Callable[[str, bytes], Fault]


@dataclass(frozen=True)
class Exchange:
    """A request that the proxy got: method, path, body, and what it did with it."""

    method: str
    path: str
    body: bytes
    fault: Fault


class Proxy:
    """Stands before a server, and fails as it is told.

    - `pass`: hands requests and answers on.
    - `refuse`: nobody listens on the port, and connections that are open break.
    - `hang`: takes requests and never answers.
    - `drop`: hands them on, and breaks the connection instead of answering, so that the server
      has done what the client must take for failed.
    - a number: answers with this HTTP status.

    Args:
        upstream: URL of the server.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.exchanges: list[Exchange] = []
        self.verdict: Verdict | None = None  # decides for each request, where it is set
        self._port = 0
        self._fault: Fault = "refuse"
        self._server: _Listener | None = None
        self._placeholder: socket.socket | None = self._bound()
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        """To give to clients."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def fault(self) -> Fault:
        """What it does with the next request."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._changed:
            self._fault = fault
            self._changed.notify_all()
            if fault == "refuse" and self._server:
                self._stop()
                self._placeholder = self._bound()
            elif fault != "refuse" and not self._server:
                self._release()
                self._server = _Listener(("127.0.0.1", self._port), self)
                threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def judge(self, method: str, path: str, body: bytes) -> Fault:
        """Note a request, and say what to do with it; comes back from `hang` when that is over."""
        with self._changed:
            if self.verdict:
                fault = self.verdict(path, body)
                if fault != self._fault:
                    self.fault = fault
            fault = self._fault
            self.exchanges.append(Exchange(method, path, body, fault))
            if fault == "hang":
                self._changed.wait_for(lambda: self._fault != "hang")
            return fault

    def close(self) -> None:
        """Give the port back."""
        self.fault = "refuse"
        self._release()

    def _bound(self) -> socket.socket:
        # A socket that is bound, and does not listen, keeps the port and refuses connections.
        placeholder = socket.socket()
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind(("127.0.0.1", self._port))
        self._port = placeholder.getsockname()[1]
        return placeholder

    def _release(self) -> None:
        if self._placeholder:
            self._placeholder.close()
            self._placeholder = None

    def _stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.socket.close()  # not server_close, which joins handlers: one may be the caller
            self._server = None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_any(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.judge(self.command, self.path, body)
        self.close_connection = fault in ("hang", "refuse", "drop")
        if fault in ("hang", "refuse"):
            return
        if isinstance(fault, int):
            self._answer(fault, {"Content-Type": "text/plain"}, b"The proxy says no.\n")
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
            self._answer(response.status, kept, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def faulty_proxy(upstream: str, fault: Fault = "pass") -> Iterator[Proxy]:
    """A proxy before the server at `upstream`, on a port of its own."""
    proxy = Proxy(upstream)
    proxy.fault = fault
    try:
        yield proxy
    finally:
        proxy.close()
