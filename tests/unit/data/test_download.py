"""Fetching from mirrors of every kind and fault, over real sockets on this machine."""

import contextlib
import gzip
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets  # type: ignore[import-untyped]

from mnist.core import config
from mnist.core.errors import InputError
from mnist.data import download
from mnist.data.catalog import DataSet
from tests.conftest import SmallData, idx

NAMES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]


@dataclass
class Server:
    """An HTTP server whose answers are up to `answer`, which writes to the socket itself."""

    folder: Path
    answer: Callable[["Server", BaseHTTPRequestHandler], None]
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def body(self, handler: BaseHTTPRequestHandler) -> bytes:
        return (self.folder / Path(handler.path).name).read_bytes()


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


def other_bytes(_: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, gzip.compress(b"another data set"))


def redirect_loop(server: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 302, Location=f"{server.url}/{Path(handler.path).name}")


def redirect_to_file(server: Server, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 302, Location=(server.folder / Path(handler.path).name).as_uri())


def truncated(server: Server, handler: BaseHTTPRequestHandler) -> None:
    body = server.body(handler)
    reply(handler, 200, body[:100], Content_Length=len(body))


def truncated_chunk(_: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"400\r\nonly this")


def no_answer(_: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def no_http(_: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 ftp ready\r\n")


def endless(_: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _attempt in range(100):  # much more than is taken, but no hang if it is
        handler.wfile.write(bytes(2**16))


def silent(server: Server, _: BaseHTTPRequestHandler) -> None:
    server.closing.wait(30)


def silent_after_a_while(server: Server, handler: BaseHTTPRequestHandler) -> None:
    truncated(server, handler)
    server.closing.wait(30)


def drip(byte: bytes, server: Server, handler: BaseHTTPRequestHandler) -> None:
    for _ in range(200):  # 10 s, twice what the test allows
        if not server.closing.wait(0.05):
            handler.wfile.write(byte)


def dripping_headers(server: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Drip: ")
    drip(b".", server, handler)


def dripping_body(server: Server, handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    drip(b"\x1f", server, handler)


@pytest.fixture
def serve(small_data: SmallData) -> Iterator[Callable[..., Server]]:
    """Start servers of the made archives."""
    started: list[tuple[Server, ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[Server, BaseHTTPRequestHandler], None] = good) -> Server:
        server = Server(folder=small_data.mirror, answer=answer)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
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
    """No variable of the machine takes part."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MNIST_MIRROR", raising=False)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(download, "MAX_BYTES", 2**20)


def section(data: SmallData, *tried: str | Path, **others: Any) -> DataSet:
    sums = data.checksums
    values = {"mirrors": [str(mirror) for mirror in tried], "checksums": {name: sums[name] for name in NAMES}}
    return config.check(DataSet, data.section(**values | others), "test")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_complete(fetched: download.Fetched, data: SmallData) -> None:
    assert sorted(fetched.archives) == sorted(NAMES)
    for name, archive in fetched.archives.items():
        assert archive.path.read_bytes() == (data.mirror / name).read_bytes()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_found, "HTTP 404 for train-images-idx3-ubyte.gz (and 3 more)"),
        (web_page, "wrong bytes for train-images-idx3-ubyte.gz: SHA-256 "),
        (web_page, "no gzip archive but b'<!doctype html>'"),
        (other_bytes, "wrong bytes for train-images-idx3-ubyte.gz: SHA-256 "),
        (redirect_loop, "HTTP 302 for train-images-idx3-ubyte.gz"),
        (redirect_to_file, "HTTP 302 for train-images-idx3-ubyte.gz"),
        (truncated, "train-images-idx3-ubyte.gz broke off after 100 of "),
        (truncated_chunk, "broken answer for train-images-idx3-ubyte.gz (IncompleteRead)"),
        (no_answer, "broken answer for train-images-idx3-ubyte.gz (RemoteDisconnected)"),
        (no_http, "broken answer for train-images-idx3-ubyte.gz (BadStatusLine)"),
        (endless, "more than 1048576 bytes for train-images-idx3-ubyte.gz"),
        (silent, "nothing came for 0.3 s"),
        (silent_after_a_while, "nothing came for 0.3 s"),
        (dripping_headers, "nothing came for 0.3 s"),
        (dripping_body, "slower than 20 kB/s"),
    ],
)
@pytest.mark.usefixtures("short_waits")
def test_a_faulty_server_is_passed_over_with_its_reason(
    answer: Callable[[Server, BaseHTTPRequestHandler], None],
    reason: str,
    serve: Callable[..., Server],
    small_data: SmallData,
    tmp_path: Path,
) -> None:
    server = serve(answer)

    started = time.monotonic()
    fetched = download.fetch(section(small_data, server.url, small_data.mirror), tmp_path / "cache")

    assert time.monotonic() - started < 5
    assert reason in fetched.reasons[server.url]
    assert_complete(fetched, small_data)
    assert {archive.origin for archive in fetched.archives.values()} == {str(small_data.mirror)}
    assert files_in(tmp_path / "cache") == sorted(NAMES)


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("no/such/folder", "no such folder: {root}/no/such/folder"),
        ("~nobody-of-this-name/mnist", "no such folder: "),
        ("file:///no/such/folder", "no such folder: /no/such/folder"),
        ("loop", "no such folder: {root}/loop"),
        ("file://relative/folder", "names the host 'relative'"),
        ("empty", "no train-images-idx3-ubyte.gz in it (and 3 more)"),
        ("unreadable", "Input/output error for train-images-idx3-ubyte.gz (and 3 more)"),
        ("ftp://127.0.0.1/mnist", "ftp:// is not known here"),
        ("s3://bucket/mnist", "s3:// is not known here"),
        ("http://[::1/mnist", "malformed URL (Invalid IPv6 URL)"),
        ("http://127.0.0.1:port/", "malformed URL (nonnumeric port"),
        ("http://127.0.0.1:1/a b", "malformed URL (URL can't contain control characters"),
        ("http:///mnist", "no connection (no host given)"),
        ("http://127.0.0.1:{closed}/", "no connection ([Errno 111] Connection refused)"),
    ],
)
def test_a_mirror_that_cannot_be_used_is_passed_over_with_its_reason(
    mirror: str, reason: str, small_data: SmallData, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "unreadable").mkdir()
    for name in NAMES:  # opens, but reading at 0 fails, for root too
        (tmp_path / "unreadable" / name).symlink_to("/proc/self/mem")
    with socket.socket() as bound:  # bound but not listening: refuses
        bound.bind(("127.0.0.1", 0))
        mirror = mirror.replace("{closed}", str(bound.getsockname()[1]))
        fetched = download.fetch(section(small_data, mirror, small_data.mirror), tmp_path / "cache")

    assert reason.replace("{root}", str(tmp_path)) in fetched.reasons[mirror]
    assert_complete(fetched, small_data)


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file://{}/", "file://localhost{}"])
def test_a_folder_is_a_path_or_a_file_url(form: str, small_data: SmallData, tmp_path: Path) -> None:
    mirror = tmp_path / "a folder"
    mirror.symlink_to(small_data.mirror)
    written = form.format(str(mirror).replace(" ", "%20") if "file:" in form else mirror)

    fetched = download.fetch(section(small_data, written), tmp_path / "cache")

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
        fetched = download.fetch(section(small_data, mirror), tmp_path / f"cache of {mirror[0]}")
        assert_complete(fetched, small_data)


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/deep/folder", "{}/folder?sig=secret"])
def test_a_url_needs_no_slash_and_keeps_its_query(
    form: str, serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve(lambda server, handler: reply(handler, 200, server.body(handler_without_query(handler))))
    mirror = form.format(server.url)

    fetched = download.fetch(section(small_data, mirror), tmp_path / "cache")

    assert_complete(fetched, small_data)
    assert all(("sig=secret" in path) == ("sig=secret" in form) for path in server.requests)
    assert all("secret" not in archive.origin for archive in fetched.archives.values())


def handler_without_query(handler: BaseHTTPRequestHandler) -> BaseHTTPRequestHandler:
    handler.path = handler.path.partition("?")[0]
    return handler


def test_a_redirect_is_followed(serve: Callable[..., Server], small_data: SmallData, tmp_path: Path) -> None:
    target = serve()
    moved = serve(lambda _, handler: reply(handler, 301, Location=target.url + handler.path))

    assert_complete(download.fetch(section(small_data, moved.url), tmp_path / "cache"), small_data)


def test_a_password_in_a_url_is_not_shown(small_data: SmallData, tmp_path: Path) -> None:
    with pytest.raises(download.NoMirrorError) as caught:
        download.fetch(section(small_data, "https://me:secret@127.0.0.1/mnist"), tmp_path)

    assert "secret" not in str(caught.value)
    assert "https://127.0.0.1/mnist  a name or password in a URL" in str(caught.value)


def test_mnist_mirror_goes_first_and_the_rest_is_not_asked(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = serve(), serve()
    monkeypatch.setenv("MNIST_MIRROR", first.url)

    fetched = download.fetch(section(small_data, second.url), tmp_path / "cache")

    assert {archive.origin for archive in fetched.archives.values()} == {first.url}
    assert first.requests == [f"/{name}" for name in NAMES]
    assert second.requests == []


def test_an_empty_mnist_mirror_is_none(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_MIRROR", "")

    assert download.fetch(section(small_data, small_data.mirror), tmp_path / "cache").reasons == {}


def test_files_may_come_from_different_mirrors(small_data: SmallData, tmp_path: Path) -> None:
    for folder, names in (("a", NAMES[1:]), ("b", NAMES[:1])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).symlink_to(small_data.mirror / name)

    fetched = download.fetch(section(small_data, "a", "b"), tmp_path / "cache")

    assert_complete(fetched, small_data)
    assert {name: archive.origin for name, archive in fetched.archives.items()} == {
        name: "b" if name == NAMES[0] else "a" for name in NAMES
    }
    assert fetched.reasons == {"a": "no train-images-idx3-ubyte.gz in it"}


def test_a_wrong_md5_is_refused_where_the_sha256_is_right(small_data: SmallData, tmp_path: Path) -> None:
    checksums = {name: {**sums, "md5": "0" * 32} for name, sums in small_data.checksums.items()}
    data = section(small_data, small_data.mirror, checksums=checksums)

    with pytest.raises(download.NoMirrorError, match=r"wrong bytes for .*: MD5 .*, not 000000000000"):
        download.fetch(data, tmp_path / "cache")

    assert files_in(tmp_path / "cache") == []


def test_what_is_cached_is_not_fetched_again_even_with_all_mirrors_gone(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()
    download.fetch(section(small_data, server.url), tmp_path / "cache")
    assert len(server.requests) == 4

    again = download.fetch(section(small_data, server.url), tmp_path / "cache")
    offline = download.fetch(section(small_data, "no/such/folder"), tmp_path / "cache")

    assert len(server.requests) == 4
    for fetched in (again, offline):
        assert_complete(fetched, small_data)
        assert {archive.origin for archive in fetched.archives.values()} == {"the cache"}
        assert fetched.reasons == {}


def test_a_broken_cached_file_is_fetched_again_and_it_alone(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()
    fetched = download.fetch(section(small_data, server.url), tmp_path / "cache")
    fetched.archives[NAMES[2]].path.write_bytes(b"the disk was full")
    server.requests.clear()

    again = download.fetch(section(small_data, server.url), tmp_path / "cache")

    assert server.requests == [f"/{NAMES[2]}"]
    assert_complete(again, small_data)


def test_data_sets_with_other_checksums_keep_their_files_side_by_side(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    other = made_of(tmp_path / "other", small_data, **{NAMES[3]: idx(small_data.test.labels_N[::-1])})
    server = serve()
    download.fetch(section(small_data, server.url), tmp_path / "cache")

    assert_complete(download.fetch(section(other, other.mirror), tmp_path / "cache"), other)
    assert_complete(download.fetch(section(small_data, server.url), tmp_path / "cache"), small_data)
    assert len(server.requests) == 4


def test_processes_may_fetch_at_once(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()
    # Forked, since a fresh interpreter imports torchvision for seconds, with this module.
    context = multiprocessing.get_context("fork")
    data = section(small_data, server.url)
    workers = [context.Process(target=download.fetch, args=(data, tmp_path / "cache")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)

    assert [worker.exitcode for worker in workers] == [0] * 4
    assert files_in(tmp_path / "cache") == sorted(NAMES)
    assert_complete(download.fetch(section(small_data, "gone"), tmp_path / "cache"), small_data)


def test_when_all_fail_one_message_lists_each_mirror_and_the_way_out(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(not_found)
    monkeypatch.setenv("MNIST_MIRROR", "my/copy")

    with pytest.raises(InputError) as caught:
        download.fetch(section(small_data, server.url, "s3://bucket"), tmp_path / "cache")

    width = len(server.url)
    assert str(caught.value) == (
        f"no mirror gave {', '.join(NAMES)} of MNIST:\n"
        f"  {'my/copy':<{width}}  no such folder: {tmp_path}/my/copy\n"
        f"  {server.url}  HTTP 404 for {NAMES[0]} (and 3 more)\n"
        f"  {'s3://bucket':<{width}}  s3:// is not known here, only a folder, file:// and http(s)://\n"
        "To supply a copy, put these files into a folder and run again with MNIST_MIRROR=/that/folder, "
        "or add the folder to data.mirrors in params.yaml."
    )


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_mirrors(
    small_data: SmallData, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(InputError, match=r"cache: found .*, expected a folder to keep the archives in"):
        download.fetch(section(small_data, small_data.mirror), tmp_path / "cache")


def in_halves(server: Server, handler: BaseHTTPRequestHandler) -> None:
    body = server.body(handler)
    half = len(body) // 2
    reply(handler, 200, body[:half], Content_Length=len(body))
    server.closing.wait(0.15)  # the bar is drawn ten times a second
    handler.wfile.write(body[half:])


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_a_bar_is_drawn_on_a_terminal_and_not_in_a_log(
    terminal: bool,
    serve: Callable[..., Server],
    small_data: SmallData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = os.openpty() if terminal else os.pipe()
    server = serve(in_halves)
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        download.fetch(section(small_data, server.url), tmp_path / "cache")
        stream.write("the end")
        stream.flush()
        shown = b""
        while not shown.endswith(b"the end"):
            shown += os.read(ours, 2**16)
    os.close(ours)

    if terminal:
        assert re.search(rb"train-images-idx3-ubyte.gz: +\d+%", shown)
    else:
        assert shown == b"the end"


def test_reading_equals_torchvisions_own(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()

    class Torchvision(datasets.MNIST):  # type: ignore[misc]
        mirrors = (f"{server.url}/",)
        resources = tuple((name, sums["md5"]) for name, sums in small_data.checksums.items())

    fetched = download.fetch(section(small_data, small_data.mirror), tmp_path / "cache")
    train, test = download.read(fetched.archives)

    for images, is_train, made in ((train, True, small_data.train), (test, False, small_data.test)):
        theirs = Torchvision(tmp_path / "theirs", train=is_train, download=True)
        np.testing.assert_array_equal(images.images_NHW, theirs.data.numpy())
        np.testing.assert_array_equal(images.labels_N, theirs.targets.numpy())
        np.testing.assert_array_equal(images.images_NHW, made.images_NHW)
        assert images.images_NHW.dtype == images.labels_N.dtype == np.uint8
    assert files_in(tmp_path / "cache") == sorted(NAMES)  # nothing is unpacked there


def made_of(folder: Path, data: SmallData, **contents: bytes) -> SmallData:
    """The made data with the contents of some archives changed, and checksums that fit."""
    folder.mkdir()
    for name in NAMES:
        packed = gzip.compress(contents[name], mtime=0) if name in contents else None
        (folder / name).write_bytes(packed or (data.mirror / name).read_bytes())
    return SmallData(train=data.train, test=data.test, mirror=folder)


INT32 = b"\0\0\x0c\x03" + b"".join(size.to_bytes(4, "big") for size in (1, 28, 28)) + bytes(4 * 28 * 28)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NAMES[0], idx(np.zeros((3, 28, 28), np.uint8)), "train-labels.*found 1200 labels, expected 3,"),
        (NAMES[3], idx(np.zeros(0, np.uint8)), "t10k-labels"),
        (NAMES[2], idx(np.zeros((300, 14, 56), np.uint8)), r"t10k-images.*found images of \(14, 56\)"),
        (
            NAMES[2],
            idx(np.zeros((300, 784), np.uint8)),
            r"t10k-images.*found b'\\x00\\x00\\x08\\x02'.*rank 3",
        ),
        (NAMES[0], INT32, r"train-images.*found b'\\x00\\x00\\x0c\\x03'.*uint8"),
        (NAMES[0], idx(np.zeros((1200, 28, 28), np.uint8))[:-1], r"train-images.*\(1200, .* before 940799 "),
        (
            NAMES[0],
            idx(np.zeros((1200, 28, 28), np.uint8)) + b"!",
            r"train-images.*\(1200, .* before 940801 ",
        ),
        (NAMES[1], b"", "train-labels"),
        (NAMES[1], b"\0\0\x08\x01\0", "train-labels"),
        (NAMES[1], b"not IDX at all", "train-labels"),
    ],
    ids=["count", "empty", "28x28", "rank", "dtype", "short", "long", "nothing", "half a size", "no IDX"],
)
def test_archives_with_right_checksums_and_wrong_contents_are_named(
    name: str, content: bytes, message: str, small_data: SmallData, tmp_path: Path
) -> None:
    data = made_of(tmp_path / "mirror", small_data, **{name: content})
    fetched = download.fetch(section(data, data.mirror), tmp_path / "cache")

    with pytest.raises(InputError, match=message):
        download.read(fetched.archives)


@pytest.mark.parametrize(
    "spoil",
    [lambda packed: packed[:-20], lambda packed: b"PK" + packed, lambda packed: packed[:50] + packed[70:]],
)
def test_an_archive_that_is_not_gzip_is_named(
    spoil: Callable[[bytes], bytes], small_data: SmallData, tmp_path: Path
) -> None:
    data = made_of(tmp_path / "mirror", small_data)
    spoiled = data.mirror / NAMES[1]
    spoiled.write_bytes(spoil(spoiled.read_bytes()))
    fetched = download.fetch(section(data, data.mirror), tmp_path / "cache")

    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte.gz: found .*, expected a gzip archive"):
        download.read(fetched.archives)


def test_an_archive_without_a_sha256_is_kept_and_checked_by_its_md5(
    small_data: SmallData, tmp_path: Path
) -> None:
    sums = {name: {"md5": both["md5"]} for name, both in small_data.checksums.items()}
    other = sums | {NAMES[0]: {"md5": "0" * 32}}

    fetched = download.fetch(section(small_data, small_data.mirror, checksums=sums), tmp_path / "cache")

    assert_complete(fetched, small_data)
    for name, archive in fetched.archives.items():
        assert archive.path == tmp_path / "cache" / sums[name]["md5"][:12] / name
    again = download.fetch(section(small_data, checksums=sums), tmp_path / "cache")
    assert {archive.origin for archive in again.archives.values()} == {"the cache"}
    with pytest.raises(download.NoMirrorError, match=f"wrong bytes for {NAMES[0]}: MD5 .*, not 000000000000"):
        download.fetch(section(small_data, small_data.mirror, checksums=other), tmp_path / "cache")


def test_mirrors_ahead_are_asked_before_the_data_sets_own(
    serve: Callable[..., Server], small_data: SmallData, tmp_path: Path
) -> None:
    server = serve()

    fetched = download.fetch(
        section(small_data, server.url), tmp_path / "cache", ahead=[str(small_data.mirror)]
    )

    assert_complete(fetched, small_data)
    assert server.requests == []


def test_no_mirror_at_all_says_how_to_supply_a_copy(small_data: SmallData, tmp_path: Path) -> None:
    with pytest.raises(download.NoMirrorError) as caught:
        download.fetch(section(small_data, title="My symbols"), tmp_path / "cache")

    first, *others = str(caught.value).splitlines()
    assert first == f"no mirror gave {', '.join(NAMES)} of My symbols:"
    assert [line[:17] for line in others] == ["To supply a copy,"]
