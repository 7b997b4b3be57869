"""The middleware under uvicorn: what clients receive."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Iterator, MutableMapping, Optional

import pytest
import uvicorn
from conftest import LIMIT, NEW, OLD, SIZE, exactly, overwrite
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

import sendfile2
from sendfile2 import asgi

ZEROCOPY = "http.response.zerocopysend"
PATH = "http.response.pathsend"


class Server:
    """A uvicorn of its own, in a thread."""

    def __init__(self, app: Any, **options: Any) -> None:
        config = uvicorn.Config(app, port=0, log_level="warning", **options)
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        limit = time.monotonic() + LIMIT
        while not self.server.started:
            assert time.monotonic() < limit and self.thread.is_alive()
            time.sleep(0.01)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    def get(self, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> socket.socket:
        """Sends a request, and returns the connection."""
        connection = socket.create_connection(self.address)
        connection.settimeout(LIMIT)
        connection.sendall(request)
        return connection

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


def header(connection: socket.socket) -> bytes:
    """The header of a response."""
    read = bytearray()
    while not read.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, bytes(read)
        read += part
    return bytes(read)


class App:
    """Answers with what a test says, by messages, and notes what went past the server."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.length: Optional[int] = None
        self.listens = False
        self.instead: Optional[dict[str, Any]] = None
        self.answered = threading.Event()
        self.error: Optional[BaseException] = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        assert ZEROCOPY in scope["extensions"] and PATH in scope["extensions"]
        headers = [] if self.length is None else [(b"content-length", b"%d" % self.length)]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for message in self.messages:
                sending = asyncio.ensure_future(send(message))
                if self.listens:
                    # While it is sent.
                    await asyncio.sleep(0)
                    for _ in range(2):
                        await receive()
                await sending
        except BaseException as error:
            self.error = error
            if self.instead is None:
                raise
            await send(self.instead)
        finally:
            self.answered.set()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def past(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that were sent past the server."""
    lengths: list[int] = []
    original = sendfile2.send_file_async

    async def counted(sock: Any, file: Any, offset: Any, count: Any) -> int:
        sent = await original(sock, file, offset, count)
        lengths.append(sent)
        return sent

    monkeypatch.setattr(asgi, "send_file_async", counted)
    return lengths


WAYS = [(http, loop) for http in ["h11", "httptools"] for loop in ["asyncio", "uvloop"]]


@pytest.fixture(params=WAYS, ids="-".join)
def server(request: pytest.FixtureRequest, app: App) -> Iterator[Server]:
    http, loop = request.param
    server = Server(asgi.SendFileMiddleware(app), http=http, loop=loop)
    yield server
    server.close()


def zerocopy(file: Any, offset: Any = None, count: Any = None, more: bool = False) -> dict[str, Any]:
    message: dict[str, Any] = {"type": ZEROCOPY, "file": file, "more_body": more}
    if offset is not None:
        message["offset"] = offset
    if count is not None:
        message["count"] = count
    return message


def body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def test_a_file_that_is_overwritten_when_it_was_sent(
    server: Server, app: App, path: Path, past: list[int]
) -> None:
    with open(path, "rb") as file:
        app.length, app.messages = 64 << 10, [zerocopy(file.fileno(), 0, 64 << 10)]
        with server.get() as client:
            assert app.answered.wait(LIMIT)
            # The client has read nothing of it.
            overwrite(path)
            header(client)
            assert exactly(client, 64 << 10) == OLD * (64 << 10)
    # It is noted before the answer ends.
    assert past == [64 << 10]


def test_control_loop_sendfile(path: Path) -> None:
    answered = threading.Event()

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-length", b"65536")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with open(path, "rb") as file:
            loop = asyncio.get_running_loop()
            transport = send.__self__.transport
            await loop.sendfile(transport, file, 0, 64 << 10, fallback=False)
        answered.set()

    server = Server(answer, loop="asyncio")
    with server.get() as client:
        assert answered.wait(LIMIT)
        overwrite(path)
        header(client)
        assert exactly(client, 64 << 10).count(NEW) > 0
    server.close()


def test_responses_on_one_connection(
    server: Server, app: App, path: Path, past: list[int]
) -> None:
    pattern = os.urandom(SIZE)
    path.write_bytes(pattern)
    client = http.client.HTTPConnection(*server.address, timeout=LIMIT)
    with open(path, "rb") as file:
        for length, messages, expected, by in [
            (SIZE, [{"type": PATH, "path": str(path)}], pattern, [SIZE]),
            (SIZE, [zerocopy(file, 0)], pattern, [SIZE]),
            (30, [zerocopy(file, 10, 20, True), body(b"x" * 10, False)], pattern[10:30] + b"x" * 10, [20]),
            (
                30,
                [body(b"x" * 10, True), zerocopy(file, 5, 10, True), zerocopy(file, 90, 10, False)],
                b"x" * 10 + pattern[5:15] + pattern[90:100],
                [10, 10],
            ),
            # From the position on, which goes on.
            (
                30,
                [zerocopy(file, None, 10, True), zerocopy(file, None, 20, True), body(b"", False)],
                pattern[:30],
                [10, 20],
            ),
            (0, [zerocopy(file, SIZE)], b"", [0]),
            # In chunks.
            (None, [zerocopy(file, 0)], pattern, []),
            (None, [zerocopy(file, 5, 10, True), body(b"x", False)], pattern[5:15] + b"x", []),
        ]:
            app.length, app.messages = length, messages
            past.clear()
            client.request("GET", "/")
            assert client.getresponse().read() == expected
            assert app.answered.wait(LIMIT)
            app.answered.clear()
            assert past == by
        # A response to HEAD has none of it.
        app.length, app.messages = SIZE, [zerocopy(file, 0)]
        client.request("HEAD", "/")
        response = client.getresponse()
        assert response.read() == b"" and response.getheader("content-length") == str(SIZE)
    client.close()
    assert app.error is None


def test_a_slow_client_and_others(server: Server, app: App, path: Path, past: list[int]) -> None:
    size = 16 << 20
    with open(path, "r+b") as file:
        file.truncate(size)
        app.length, app.messages = size, [zerocopy(file, 0)]
        with server.get() as slow, server.get() as other:
            header(other)
            assert exactly(other, size) == OLD * SIZE + b"\0" * (size - SIZE)
            header(slow)
            assert exactly(slow, size) == OLD * SIZE + b"\0" * (size - SIZE)
    server.close()
    assert past == [size, size]


@pytest.mark.parametrize("listens", [False, True])
def test_what_a_client_says_meanwhile_is_not_answered_in_the_middle(
    server: Server, app: App, path: Path, listens: bool
) -> None:
    size = 16 << 20
    app.listens = listens
    with open(path, "r+b") as file:
        file.truncate(size)
        app.length, app.messages = size, [zerocopy(file, 0)]
        # So much that the server pauses, until somebody receives it.
        large = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
        with server.get(large) if listens else server.get() as client:
            header(client)
            first = exactly(client, 1)  # it is on its way
            client.sendall(b"this is no HTTP\r\n\r\n")
            assert first + exactly(client, size - 1) == OLD * SIZE + b"\0" * (size - SIZE)
            assert client.recv(1 << 10).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves(server: Server, app: App, path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        app.length, app.messages = 16 << 20, [zerocopy(file, 0)]
        with server.get() as client:
            header(client)
        assert app.answered.wait(LIMIT)
        assert app.error is None


@pytest.mark.parametrize("count", [5, 15])
def test_more_or_less_than_announced_is_the_servers_to_refuse(
    server: Server, app: App, path: Path, count: int
) -> None:
    with open(path, "rb") as file:
        app.length, app.messages = 10, [zerocopy(file, 0, count)]
        with server.get() as client:
            header(client)
            assert len(exactly(client, 10)) in (0, 5)  # and the end, not another response
    assert app.error is not None


@pytest.mark.parametrize("caught", [False, True])
def test_a_file_that_gets_shorter_ends_the_connection(
    server: Server, app: App, path: Path, caught: bool
) -> None:
    app.instead = body(bytes(16 << 20), False) if caught else None
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        app.length, app.messages = 16 << 20, [zerocopy(file, 0)]
        with server.get() as client:
            header(client)
            exactly(client, 1)  # it is on its way
            file.truncate(0)
            with contextlib.suppress(ConnectionResetError):
                assert len(exactly(client, 16 << 20)) < 16 << 20
        assert app.answered.wait(LIMIT)
        assert isinstance(app.error, RuntimeError)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_by_tls_it_is_read(app: App, path: Path, past: list[int], loop: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("TLS: there is no openssl to make a certificate")
    key, certificate = path.parent / "key.pem", path.parent / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    server = Server(
        asgi.SendFileMiddleware(app), loop=loop, ssl_keyfile=str(key), ssl_certfile=str(certificate)
    )
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    app.length, app.messages = SIZE, [{"type": PATH, "path": str(path)}]
    client = http.client.HTTPSConnection(*server.address, context=context, timeout=LIMIT)
    for _ in range(2):
        client.request("GET", "/")
        assert client.getresponse().read() == OLD * SIZE
    client.close()
    server.close()
    assert past == []


def test_behind_another_middleware_it_is_read(app: App, path: Path, past: list[int]) -> None:
    async def outer(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        await asgi.SendFileMiddleware(app)(scope, receive, wrapped)

    app.length, app.messages = SIZE, [{"type": PATH, "path": str(path)}]
    server = Server(outer)
    with server.get() as client:
        header(client)
        assert exactly(client, SIZE) == OLD * SIZE
    server.close()
    assert past == []


def test_starlettes_files(path: Path, past: list[int]) -> None:
    async def file(request: Any) -> FileResponse:
        return FileResponse(path)

    server = Server(asgi.SendFileMiddleware(Starlette(routes=[Route("/", file)])))
    client = http.client.HTTPConnection(*server.address, timeout=LIMIT)
    client.request("GET", "/")
    assert client.getresponse().read() == OLD * SIZE
    client.request("GET", "/", headers={"Range": "bytes=10-19"})
    assert client.getresponse().read() == OLD * 10
    client.close()
    server.close()
    assert past == [SIZE]
