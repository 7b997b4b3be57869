"""``send_file``: what the peer receives, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMIT, NEW, OLD, SIZE, Pair, Reader, by_os_sendfile, overwrite, uring_or_skip

import sendfile2
from sendfile2 import _native


def test_control_os_sendfile_is_overtaken(pair: Pair, path: Path) -> None:
    sent = by_os_sendfile(pair.sender, path)
    overwrite(path)
    assert pair.received(sent).count(NEW) > 0


def test_overwriting_at_return_changes_nothing(pair: Pair, path: Path) -> None:
    # The peer has read nothing of it.
    with open(path, "rb") as file:
        sent = sendfile2.send_file(pair.sender, file, 0, 64 << 10, LIMIT)
    overwrite(path)
    assert pair.received(sent) == OLD * (64 << 10)


@pytest.mark.parametrize("engine", ["auto", "copy", "uring"])
def test_overwriting_at_return_changes_nothing_of_a_full_socket(
    pair: Pair, path: Path, engine: Any
) -> None:
    if engine == "uring":
        uring_or_skip(pair)
    times = 16
    reader = Reader(pair.receiver)
    for _ in range(times):
        path.write_bytes(OLD * SIZE)
        with open(path, "rb") as file:
            assert sendfile2.send_file(pair.sender, file, deadline=LIMIT, engine=engine) == SIZE
        overwrite(path)
    pair.sender.close()
    assert reader.all() == OLD * SIZE * times


def test_ranges_end_with_the_file(pair: Pair, path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(7)
        assert sendfile2.send_file(pair.sender, file, SIZE - 10, 100, LIMIT) == 10
        assert sendfile2.send_file(pair.sender, file.fileno(), SIZE - 3) == 3
        assert sendfile2.send_file(pair.sender.fileno(), file, SIZE + 5) == 0
        assert sendfile2.send_file(pair.sender, file, 0, 0) == 0
        assert file.tell() == 7
    assert pair.received(13) == OLD * 13


@pytest.mark.parametrize("engine", ["copy", "uring"])
def test_a_deadline_tells_how_far_it_got(pair: Pair, path: Path, engine: Any) -> None:
    if engine == "uring":
        uring_or_skip(pair)
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        with pytest.raises(sendfile2.SendTimeout) as raised:
            sendfile2.send_file(pair.sender, file, deadline=0.2, engine=engine)
    error = raised.value
    assert 0 < error.sent < 16 << 20
    assert error.released == (engine == "copy")
    assert ("may still read" in str(error)) == (engine == "uring")
    assert isinstance(error, TimeoutError)
    with open(path, "r+b") as file:
        file.write(NEW * (16 << 20))
    # Just so much arrives, and the end of the stream.
    pair.sender.close()
    received = Reader(pair.receiver).all()
    assert len(received) == error.sent
    # What is not released is what the peer gets.
    assert (NEW in received) == (engine == "uring")


def test_the_sockets_timeout_is_the_deadline(pair: Pair, path: Path) -> None:
    pair.sender.settimeout(0.2)
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        with pytest.raises(sendfile2.SendTimeout):
            sendfile2.send_file(pair.sender, file)


def test_a_peer_that_is_gone(pair: Pair, path: Path) -> None:
    pair.receiver.close()
    with open(path, "rb") as file, pytest.raises(sendfile2.PeerGone) as raised:
        while True:
            sendfile2.send_file(pair.sender, file, deadline=LIMIT)
    assert isinstance(raised.value, ConnectionError)
    assert raised.value.released


def test_other_threads_run_meanwhile(pair: Pair, path: Path) -> None:
    # Who reads needs the interpreter's lock, of which the sender would wait with it.
    with open(path, "r+b") as file:
        file.truncate(32 << 20)
        reader = Reader(pair.receiver)
        assert sendfile2.send_file(pair.sender, file, deadline=LIMIT) == 32 << 20
    pair.sender.close()
    assert len(reader.all()) == 32 << 20


def test_a_signal_ends_it(pair: Pair, path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with open(path, "r+b") as file:
            file.truncate(16 << 20)
            with pytest.raises(Stop):
                sendfile2.send_file(pair.sender, file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_socket_stays_what_it_is_when_it_is_closed_meanwhile(pair: Pair, path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(16 << 20)
        number = pair.sender.fileno()
        copier = _native.Copier(pair.sender, file, None, None)
        while copier.step(False) == "more":
            pass
        pair.sender.close()
        other = Pair()
        os.dup2(other.sender.fileno(), number)
        # Where the number is another's now, nothing is sent to that one.
        reader = Reader(pair.receiver)
        before = copier.sent
        while copier.sent < before + (8 << 20):
            copier.step(False)
        sent = copier.sent
        del copier
        assert len(reader.all()) == sent
        os.close(number)
        other.sender.close()
        assert other.received(1) == b""


def test_what_would_be_wrong_is_refused(pair: Pair, path: Path) -> None:
    tls = ssl.create_default_context().wrap_socket(
        pair.sender, server_hostname="x", do_handshake_on_connect=False
    )
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    pipe, end = os.pipe()
    one, _two = socket.socketpair()
    with open(path, "rb") as file, tls, datagrams, one, _two:
        with pytest.raises(ValueError, match="TLS"):
            sendfile2.send_file(tls, file)
        with pytest.raises(ValueError, match="stream"):
            sendfile2.send_file(datagrams, file)
        one.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking"):
            sendfile2.send_file(one, file)
        with pytest.raises(ValueError, match="engine"):
            sendfile2.send_file(one, file, deadline=1, engine="zerocopy")  # type: ignore[arg-type]
        for numbers in [(-1, None, 1.0), (0, -1, 1.0), (0, 1, -1.0)]:
            with pytest.raises(ValueError):
                sendfile2.send_file(one, file, *numbers)
        with pytest.raises(OSError, match="descriptor"):
            sendfile2.send_file(-1, file)
        with pytest.raises(OSError):
            sendfile2.send_file(pipe, file)
        with pytest.raises(sendfile2.SendError):
            sendfile2.send_file(one, pipe, deadline=1)
    os.close(pipe)
    os.close(end)


def test_unix_sockets(path: Path) -> None:
    one, two = socket.socketpair()
    reader = Reader(two)
    with open(path, "rb") as file:
        assert sendfile2.send_file(one, file) == SIZE
    overwrite(path)
    one.close()
    assert reader.all() == OLD * SIZE


def test_errors_can_be_pickled() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(sendfile2.SendTimeout(110, "text", 5, False)))
    assert (error.errno, error.sent, error.released) == (110, 5, False)


def test_threads_have_sends_of_their_own(path: Path) -> None:
    results: list[bytes] = []

    def one() -> None:
        pair = Pair()
        reader = Reader(pair.receiver)
        with open(path, "rb") as file:
            sendfile2.send_file(pair.sender, file, deadline=LIMIT)
        pair.sender.close()
        results.append(reader.all())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == [OLD * SIZE] * 8
