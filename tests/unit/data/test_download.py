"""Mirrors of every kind and fault, over real sockets on this machine; and what is in the archives."""

import contextlib
import gzip
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mnist.core import config
from mnist.core.errors import InputError
from mnist.data import download
from mnist.data.catalog import ARCHIVES, DataSet
from mnist.data.store import Bytes
from tests.conftest import SmallData, idx


@dataclass
class Server:
    """An HTTP server whose answers are written by `answer`."""

    folder: Path
    answer: Callable[["Server", BaseHTTPRequestHandler], None]
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def body(self, handler: BaseHTTPRequestHandler) -> bytes:
        return (self.folder / Path(urlsplit(handler.path).path).name).read_bytes()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str | int) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": len(body), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def good(server: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, server.body(handler))


def not_found(_: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 404)


def web_page(_: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, b"<!doctype html><title>Log in to the hotel's network</title>")


def no_http(_: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 ftp ready\r\n")


def silent(server: Server, _: BaseHTTPRequestHandler) -> None:
    server.closing.wait(120)


def silent_after_a_while(server: Server, handler: BaseHTTPRequestHandler) -> None:
    body = server.body(handler)
    reply(handler, 200, body[:100], Content_Length=len(body))
    server.closing.wait(120)


Serve = Callable[..., Server]


@pytest.fixture
def serve(small_data: SmallData) -> Iterator[Serve]:
    """Start servers of the made archives."""
    started: list[tuple[Server, ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[Server, BaseHTTPRequestHandler], None] = good) -> Server:
        server = Server(folder=small_data.mirror, answer=answer)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(Path(self.path).name)
                with contextlib.suppress(OSError):  # the client has gone
                    answer(server, self)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, http, thread))
        return server

    yield start
    for server, http, thread in started:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the variables of this machine out."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MNIST_MIRROR", raising=False)


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)


def known(data: SmallData, *mirrors: str | Path, **others: Any) -> DataSet:
    values = {"mirrors": [str(mirror) for mirror in mirrors], **others}
    return config.check(DataSet, data.section(**values), "test")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_complete(fetched: download.Fetched, data: SmallData) -> None:
    assert sorted(fetched.archives) == sorted(ARCHIVES)
    for name, path in fetched.archives.items():
        assert path.read_bytes() == (data.mirror / name).read_bytes()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_found, "HTTP 404"),
        (web_page, "wrong checksum"),
        (no_http, "220 ftp ready"),
        (silent, "no answer within 0.5 s"),
        (silent_after_a_while, "no answer within 0.5 s"),
    ],
)
@pytest.mark.usefixtures("short_timeout")
def test_a_faulty_server_is_skipped_with_its_reason(
    answer: Callable[[Server, BaseHTTPRequestHandler], None],
    reason: str,
    serve: Serve,
    small_data: SmallData,
    tmp_path: Path,
) -> None:
    server = serve(answer)

    fetched = download.fetch(known(small_data, server.url, small_data.mirror), tmp_path / "cache")

    assert reason in fetched.reasons[server.url]
    assert "\n" not in fetched.reasons[server.url]
    assert_complete(fetched, small_data)
    assert set(fetched.origins.values()) == {str(small_data.mirror)}
    assert files_in(tmp_path / "cache") == sorted(ARCHIVES)


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("no/such/folder", "No such file or directory: '{root}/no/such/folder"),
        ("~nobody-of-this-name/mnist", "home directory"),
        ("s3://bucket/mnist", "unknown url type: s3"),
        ("http://127.0.0.1:{closed}/", "Connection refused"),
        ("http://[127.0.0.1/?token=secret", "no URL"),
        ("http://127.0.0.1:port/?token=secret", "no URL"),
        ("http://me:secret@127.0.0.1:{closed}/?token=secret", "Connection refused"),
    ],
)
def test_an_unusable_mirror_is_skipped_with_its_reason(
    mirror: str, reason: str, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # bound but not listening: refuses
        bound.bind(("127.0.0.1", 0))
        mirror = mirror.replace("{closed}", str(bound.getsockname()[1]))
        monkeypatch.setenv("MNIST_MIRROR", mirror)
        fetched = download.fetch(known(small_data, small_data.mirror), tmp_path / "cache")

    assert_complete(fetched, small_data)
    ((shown, found),) = fetched.reasons.items()
    assert mirror.startswith(shown) or "secret" in mirror
    assert reason.replace("{root}", str(tmp_path)) in found
    assert "secret" not in shown + found


def locked(server: Server, handler: BaseHTTPRequestHandler) -> None:
    is_known = handler.headers["Authorization"] == "Basic YWRhOnBAc3M="  # ada:p@ss
    if is_known and handler.path.endswith("?token=7"):
        reply(handler, 200, server.body(handler))
    else:
        reply(handler, 401)


def test_a_mirror_of_the_environment_may_have_a_password_and_a_query(
    serve: Serve, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(locked)
    place = server.url.removeprefix("http://")
    monkeypatch.setenv("MNIST_MIRROR", f"http://ada:p%40ss@{place}/?token=7")
    fetched = download.fetch(known(small_data), tmp_path / "cache")
    assert_complete(fetched, small_data)
    assert set(fetched.origins.values()) == {f"{server.url}/"}


@pytest.mark.parametrize("form", ["{}", "file://{}/", "file://localhost{}"])
def test_a_folder_is_a_path_or_a_file_url(form: str, small_data: SmallData, tmp_path: Path) -> None:
    mirror = tmp_path / "a folder"
    mirror.symlink_to(small_data.mirror)
    written = form.format(str(mirror).replace(" ", "%20") if "file:" in form else mirror)

    fetched = download.fetch(known(small_data, written), tmp_path / "cache")

    assert_complete(fetched, small_data)
    assert fetched.reasons == {}


def test_a_relative_folder_is_under_dvc_root_and_a_tilde_is_home(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").symlink_to(small_data.mirror)
    (tmp_path / "temporary tree").mkdir()
    monkeypatch.chdir(tmp_path / "temporary tree")  # as in `dvc exp run --temp`
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    monkeypatch.setenv("HOME", str(tmp_path))

    for mirror in ("../shared", "~/shared"):
        fetched = download.fetch(known(small_data, mirror), tmp_path / f"cache of {mirror[0]}")
        assert_complete(fetched, small_data)


def test_mnist_mirror_is_first_then_those_ahead_then_those_of_the_data_set(
    serve: Serve, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, last = serve(not_found), serve(), serve()
    monkeypatch.setenv("MNIST_MIRROR", first.url)

    fetched = download.fetch(known(small_data, last.url), tmp_path / "cache", ahead=[second.url])

    assert set(fetched.origins.values()) == {second.url}
    assert list(fetched.reasons) == [first.url]
    assert len(first.requests) == 1
    assert set(second.requests) == set(ARCHIVES)
    assert last.requests == []


def test_an_archive_that_is_not_compressed_is_named_with_the_command(
    small_data: SmallData, tmp_path: Path
) -> None:
    plain = tmp_path / "t10k-images-idx3-ubyte"
    plain.touch()

    with pytest.raises(InputError, match=f"run `gzip -k {plain}`"):
        download.fetch(known(small_data), tmp_path / "cache", ahead=[str(tmp_path)])


def test_archives_may_come_from_different_mirrors(small_data: SmallData, tmp_path: Path) -> None:
    *names, last = small_data.checksums
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / "a" / name).symlink_to(small_data.mirror / name)

    fetched = download.fetch(known(small_data, "a", small_data.mirror), tmp_path / "cache")

    assert_complete(fetched, small_data)
    assert fetched.origins == dict.fromkeys(names, "a") | {last: str(small_data.mirror)}


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_one_wrong_checksum_is_enough_to_refuse(
    kind: str, serve: Serve, small_data: SmallData, tmp_path: Path
) -> None:
    name = ARCHIVES[0]
    wrong = {**small_data.checksums[name], kind: "0" * len(small_data.checksums[name][kind])}
    data = known(small_data, serve().url, small_data.mirror, checksums=small_data.checksums | {name: wrong})

    with pytest.raises(InputError, match=f"no mirror that has {name}, "):
        download.fetch(data, tmp_path / "cache")

    assert name not in files_in(tmp_path / "cache")


def test_cached_archives_are_not_fetched_again_and_a_broken_one_is(
    serve: Serve, small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()
    fetched = download.fetch(known(small_data, server.url), tmp_path / "cache")
    server.requests.clear()

    offline = download.fetch(known(small_data, "no/such/folder"), tmp_path / "cache")
    assert_complete(offline, small_data)
    assert set(offline.origins.values()) == {"the cache"}
    assert offline.reasons == {}

    fetched.archives[ARCHIVES[2]].write_bytes(b"the disk was full")
    assert_complete(download.fetch(known(small_data, server.url), tmp_path / "cache"), small_data)
    assert set(server.requests) == {ARCHIVES[2]}


def test_data_sets_share_the_cache_with_and_without_sha256(small_data: SmallData, tmp_path: Path) -> None:
    other = made_of(tmp_path / "other", small_data, **{ARCHIVES[3]: idx(small_data.test.labels_N[::-1])})
    by_md5 = {name: {"md5": sums["md5"]} for name, sums in other.checksums.items()}
    cache = tmp_path / "cache"
    download.fetch(known(small_data, small_data.mirror), cache)
    assert_complete(download.fetch(known(other, other.mirror), cache), other)
    assert_complete(download.fetch(known(other, other.mirror, checksums=by_md5), cache), other)

    for data in (known(small_data), known(other), known(other, checksums=by_md5)):
        assert set(download.fetch(data, cache).origins.values()) == {"the cache"}


def test_a_full_disk_is_no_fault_of_a_mirror(small_data: SmallData, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # an error of the system like a full disk
    try:
        with pytest.raises(InputError, match=r"gz: found File too large"):
            download.fetch(known(small_data, small_data.mirror), tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(tmp_path) == []


# ---- what is in the archives


def made_of(folder: Path, data: SmallData, **contents: bytes) -> SmallData:
    """The made data with the contents of some archives changed."""
    folder.mkdir()
    for name in ARCHIVES:
        packed = gzip.compress(contents[name], mtime=0) if name in contents else None
        (folder / name).write_bytes(packed or (data.mirror / name).read_bytes())
    return SmallData(train=data.train, test=data.test, mirror=folder)


BLACK: Bytes = np.zeros((1200, 28, 28), np.uint8)
INT32 = b"\0\0\x0c\x03" + b"".join(size.to_bytes(4, "big") for size in (1, 28, 28)) + bytes(4 * 28 * 28)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (ARCHIVES[0], idx(BLACK[:3]), "train-labels"),
        (ARCHIVES[2], idx(np.zeros((300, 14, 56), np.uint8)), "t10k-images"),
        (ARCHIVES[0], INT32, "train-images"),
        (ARCHIVES[0], idx(BLACK)[:-1], "train-images"),
    ],
    ids=["count", "28x28", "dtype", "short"],
)
def test_wrong_contents_are_named(
    name: str, content: bytes, named: str, small_data: SmallData, tmp_path: Path
) -> None:
    data = made_of(tmp_path / "mirror", small_data, **{name: content})

    with pytest.raises(InputError, match=f"^{named}.*: found "):
        download.read({one: data.mirror / one for one in ARCHIVES})


def test_an_archive_that_is_cut_off_is_named(small_data: SmallData, tmp_path: Path) -> None:
    cut_off = tmp_path / ARCHIVES[1]
    cut_off.write_bytes((small_data.mirror / ARCHIVES[1]).read_bytes()[:-20])
    archives: dict[str, Path] = {name: small_data.mirror / name for name in ARCHIVES}

    with pytest.raises(InputError, match=f"^{ARCHIVES[1]}: found "):
        download.read({**archives, ARCHIVES[1]: cut_off})
