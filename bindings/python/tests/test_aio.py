"""``send_file_async``: what the peer receives, and that the loop goes on."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any, Callable, Coroutine

import pytest
import uvloop
from conftest import LIMIT, NEW, OLD, SIZE, Pair, Reader, overwrite

import sendfile2
from sendfile2 import GuardedFile, send_file_async

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def run(main: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.new_event_loop() if request.param == "asyncio" else uvloop.new_event_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(main, LIMIT))
        finally:
            loop.close()

    return run


def test_control_loop_sendfile_is_overtaken(pair: Pair, path: Path) -> None:
    # Of asyncio only: uvloop reads the file.
    async def main() -> None:
        pair.sender.setblocking(False)
        with open(path, "rb") as file:
            loop = asyncio.get_running_loop()
            await loop.sock_sendfile(pair.sender, file, 0, 64 << 10, fallback=False)
        overwrite(path)
        assert pair.received(64 << 10).count(NEW) > 0

    asyncio.run(main())


def test_overwriting_at_return_changes_nothing(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        pair.sender.setblocking(False)
        with open(path, "rb") as file:
            assert await send_file_async(pair.sender, file, 0, 64 << 10) == 64 << 10
        overwrite(path)
        assert pair.received(64 << 10) == OLD * (64 << 10)

    run(main())


def test_the_loop_goes_on_while_a_peer_does_not_read(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        with open(path, "r+b") as file:
            file.truncate(16 << 20)
            stalled = asyncio.ensure_future(send_file_async(pair.sender, file))
            other = Pair()
            reader = Reader(other.receiver)
            for _ in range(8):
                assert await send_file_async(other.sender, file, 0, SIZE, LIMIT) == SIZE
            other.sender.close()
            assert reader.all() == OLD * SIZE * 8
            assert not stalled.done()
            reader = Reader(pair.receiver)
            assert await stalled == 16 << 20
        pair.sender.close()
        assert reader.all() == OLD * SIZE + b"\0" * (15 << 20)

    run(main())


def test_what_is_not_cached_is_read_by_a_thread(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            reader = Reader(pair.receiver)
            assert await send_file_async(pair.sender, file) == SIZE
        pair.sender.close()
        assert reader.all() == OLD * SIZE

    run(main())


def test_a_deadline(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        with open(path, "r+b") as file:
            file.truncate(16 << 20)
            with pytest.raises(sendfile2.SendTimeout) as raised:
                await send_file_async(pair.sender, file, deadline=0.2)
        pair.sender.close()
        assert len(Reader(pair.receiver).all()) == raised.value.sent > 0
        assert raised.value.released

    run(main())


def test_cancelled_it_sends_no_more(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        with open(path, "r+b") as file:
            file.truncate(16 << 20)
            sending = asyncio.ensure_future(send_file_async(pair.sender, file))
            first = await asyncio.get_running_loop().run_in_executor(None, pair.received, SIZE)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        assert sendfile2.send_file(pair.sender.dup(), os.open(path, os.O_RDONLY), 0, 0) == 0
        reader = Reader(pair.receiver)
        pair.sender.setblocking(True)
        pair.sender.sendall(b"end")
        pair.sender.close()
        assert first == OLD * SIZE
        rest = reader.all()
        assert rest == b"\0" * (len(rest) - 3) + b"end"

    run(main())


def test_a_writers_bytes_come_first(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=pair.sender)
        reader = Reader(pair.receiver)
        with open(path, "rb") as file:
            for _ in range(8):
                writer.write(b"<" * (8 << 20))
                assert await send_file_async(writer, file, 0, 5, LIMIT) == 5
                writer.write(b">")
                assert await send_file_async(writer.transport, file, 0, 5, LIMIT) == 5
        writer.close()
        await writer.wait_closed()
        with pytest.raises(sendfile2.PeerGone), open(path, "rb") as file:
            await send_file_async(writer, file)
        once = b"<" * (8 << 20) + OLD * 5 + b">" + OLD * 5
        assert await asyncio.get_running_loop().run_in_executor(None, reader.all) == once * 8

    run(main())


def test_a_lease(run: Run, pair: Pair, detaching: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with GuardedFile(detaching) as slab, slab.lease(0, SIZE) as lease:
            await loop.run_in_executor(None, slab.write_at, NEW * SIZE, 0, LIMIT)
            reader = Reader(pair.receiver)
            assert await send_file_async(pair.sender, lease) == SIZE
        pair.sender.close()
        assert reader.all() == OLD * SIZE

    run(main())


def test_tls_is_refused(run: Run, pair: Pair, path: Path) -> None:
    async def main() -> None:
        context = ssl.create_default_context()
        tls = context.wrap_socket(pair.sender, server_hostname="x", do_handshake_on_connect=False)
        with tls, open(path, "rb") as file, pytest.raises(ValueError, match="TLS"):
            await send_file_async(tls, file)

    run(main())


def test_a_peer_that_is_gone(run: Run, path: Path) -> None:
    async def main() -> None:
        one, two = socket.socketpair()
        with one, open(path, "r+b") as file:
            file.truncate(16 << 20)
            sending = asyncio.ensure_future(send_file_async(one, file))
            await asyncio.get_running_loop().run_in_executor(None, two.recv, 1)
            two.close()
            with pytest.raises(sendfile2.PeerGone):
                await sending

    run(main())
