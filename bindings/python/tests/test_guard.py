"""``GuardedFile`` and its leases."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from conftest import LIMIT, NEW, OLD, SIZE, Pair, Reader

import sendfile2
from sendfile2 import GuardedFile

HALF = SIZE // 2


def test_a_lease_is_sent_as_it_was(pair: Pair, detaching: Path) -> None:
    with GuardedFile(detaching) as slab:
        with slab.lease(0, HALF, LIMIT) as lease:
            writer = threading.Thread(target=slab.write_at, args=(NEW * SIZE, 0, LIMIT))
            writer.start()
            writer.join(LIMIT)
            assert detaching.read_bytes() == NEW * SIZE
            reader = Reader(pair.receiver)
            assert sendfile2.send_file(pair.sender, lease, deadline=LIMIT) == HALF
            assert lease.read_at(HALF - 5, 5) == OLD * 5
        with slab.lease(0, HALF) as lease:
            assert sendfile2.send_file(pair.sender, lease, 10, 20) == 20
    pair.sender.close()
    assert reader.all() == OLD * HALF + NEW * 20


def test_control_without_a_lease(pair: Pair, detaching: Path) -> None:
    with GuardedFile(detaching) as slab, open(detaching, "rb") as file:
        slab.write_at(NEW * SIZE, 0, LIMIT)
        assert sendfile2.send_file(pair.sender, file, 0, 10) == 10
    assert pair.received(10) == NEW * 10


def test_where_writers_wait_they_wait_for_leases(path: Path) -> None:
    with GuardedFile(path, overwrite="wait", nothing_exposed=True) as slab:
        lease = slab.lease(0, 4096)

        def write() -> None:
            with pytest.raises(TimeoutError):
                slab.write_at(NEW, 0, 0.1)
            assert not slab.try_write_at(NEW, 0)
            slab.write_at(NEW, 4096, LIMIT)  # no byte of the lease

        writer = threading.Thread(target=write)
        writer.start()
        writer.join(LIMIT)
        assert path.read_bytes()[:4097] == OLD * 4096 + NEW
        with pytest.raises(sendfile2.LeaseError):
            slab.write_at(NEW, 0, LIMIT)  # by the thread that has the lease
        lease.close()
        assert slab.try_write_at(NEW, 0)
        slab.set_len(1, LIMIT)
        assert path.read_bytes() == NEW


def test_a_lease_that_is_waited_for_no_longer(pair: Pair, path: Path) -> None:
    with GuardedFile(path, overwrite="wait") as slab:
        lease = slab.lease(0, 4096)
        writer = threading.Thread(target=slab.write_at_abort, args=(NEW, 0, 0.1))
        writer.start()
        writer.join(LIMIT)
        with pytest.raises(sendfile2.LeaseRevoked):
            lease.read_at(0, 1)
        with pytest.raises(sendfile2.LeaseRevoked):
            sendfile2.send_file(pair.sender, lease)


def test_a_send_keeps_its_lease(pair: Pair, path: Path) -> None:
    # It is closed while it is sent.
    with GuardedFile(path, overwrite="wait", nothing_exposed=True) as slab:
        slab.set_len(32 << 20, LIMIT)
        lease = slab.lease(0, 32 << 20)
        sender = threading.Thread(target=sendfile2.send_file, args=(pair.sender, lease))
        sender.start()
        first = pair.received(1)
        lease.close()
        assert not slab.try_write_at(NEW, (32 << 20) - 1)
        reader = Reader(pair.receiver)
        sender.join(LIMIT)
        slab.write_at(NEW * SIZE, 0, LIMIT)
        pair.sender.close()
        assert first + reader.all() == OLD * SIZE + b"\0" * (31 << 20)


def test_what_is_not_leased_is_refused(pair: Pair, path: Path) -> None:
    with open(path, "r+b") as file, GuardedFile(file) as slab:
        lease = slab.try_lease(10, 20)
        assert lease is not None
        assert (lease.offset, lease.count) == (10, 20)
        for offset, count in [(9, 1), (10, 21), (1 << 40, 1), (0, 1 << 62)]:
            with pytest.raises(sendfile2.LeaseError):
                lease.read_at(offset, count)
            with pytest.raises(sendfile2.LeaseError):
                sendfile2.send_file(pair.sender, lease, offset, count)
        with pytest.raises(ValueError):
            sendfile2.send_file(pair.sender, lease, engine="uring")
        lease.close()
        with pytest.raises(ValueError, match="closed"):
            lease.read_at(10, 1)
    with pytest.raises(ValueError, match="closed"):
        slab.write_at(NEW, 0)
    with pytest.raises(FileNotFoundError):
        GuardedFile(path.parent / "missing")
    with open(path, "rb") as reading, pytest.raises(OSError, match="reading only"):
        GuardedFile(reading)
    with pytest.raises(ValueError, match="overwrite"):
        GuardedFile(path, overwrite="never")  # type: ignore[arg-type]
