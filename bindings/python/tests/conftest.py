"""What the tests share: connections, files, and what a peer has received."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any, Iterator

import pytest

import sendfile2

SIZE = 1 << 20
OLD = b"A"
NEW = b"B"

LIMIT = 30.0
"""Seconds that only a hang reaches."""


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """No test is skipped in silence: the line is what `cargo xtask ci` collects."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIP: Python: {report.longrepr[2]}")


class Pair:
    """A TCP connection."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sender = socket.create_connection(listener.getsockname())
            self.receiver, _ = listener.accept()
        self.receiver.settimeout(LIMIT)

    def received(self, count: int) -> bytes:
        return exactly(self.receiver, count)


def exactly(receiver: socket.socket, count: int) -> bytes:
    """What is received: ``count`` bytes, or fewer before the end."""
    parts = bytearray()
    while len(parts) < count and (part := receiver.recv(min(count - len(parts), 1 << 20))):
        parts += part
    return bytes(parts)


class Reader(threading.Thread):
    """A peer that reads to the end."""

    def __init__(self, receiver: socket.socket) -> None:
        super().__init__(daemon=True)
        self.receiver = receiver
        self.bytes = b""
        self.start()

    def run(self) -> None:
        self.bytes = exactly(self.receiver, 1 << 40)

    def all(self) -> bytes:
        self.join(LIMIT)
        assert not self.is_alive()
        return self.bytes


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.sender.close()
    pair.receiver.close()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a disk, if there is one: /tmp may be in memory."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("SENDFILE2_TEST_DIR")) as directory:
        yield Path(directory)


@pytest.fixture
def path(disk: Path) -> Path:
    path = disk / "slab"
    path.write_bytes(OLD * SIZE)
    return path


@pytest.fixture
def detaching(path: Path) -> Path:
    """The same, where what is in flight can be detached."""
    with open(path, "r+b") as file:
        try:
            sendfile2.pwrite(file, OLD * sendfile2.pwrite_unit(file), 0)
        except sendfile2.NotDetached as why:
            pytest.skip(f"nothing can be detached in {path.parent}: {why}")
    return path


def uring_or_skip(pair: Pair) -> None:
    with open("/proc/self/exe", "rb") as file:
        try:
            sendfile2.send_file(pair.sender, file, 0, 1, LIMIT, engine="uring")
        except sendfile2.SendError as why:
            pytest.skip(f"the engine uring: {why}")
    pair.received(1)


def by_os_sendfile(sender: socket.socket, path: Path) -> int:
    """Sends by ``os.sendfile`` what the socket takes, to a peer that does not read."""
    sender.setblocking(False)
    sent = 0
    with open(path, "rb") as file:
        try:
            while sent < SIZE:
                sent += os.sendfile(sender.fileno(), file.fileno(), sent, SIZE - sent)
        except BlockingIOError:
            pass
    assert sent > 0
    return sent


def overwrite(path: Path) -> None:
    """Overwrites all of a file in place."""
    with open(path, "r+b") as file:
        file.write(NEW * SIZE)
