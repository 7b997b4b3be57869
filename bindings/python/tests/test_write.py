"""``pwrite``: nothing that is in flight changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from conftest import NEW, OLD, SIZE, Pair, by_os_sendfile, overwrite

import sendfile2


def test_what_os_sendfile_has_in_flight_keeps_its_bytes(pair: Pair, detaching: Path) -> None:
    sent = by_os_sendfile(pair.sender, detaching)
    with open(detaching, "rb") as file:
        assert sendfile2.pwrite(file, bytearray(NEW * SIZE), 0) == SIZE
    assert detaching.read_bytes() == NEW * SIZE
    assert pair.received(sent) == OLD * sent


def test_control_os_pwrite(pair: Pair, path: Path) -> None:
    sent = by_os_sendfile(pair.sender, path)
    overwrite(path)
    assert pair.received(sent).count(NEW) > 0


def test_it_writes_whole_units_within_the_file(detaching: Path) -> None:
    with open(detaching, "r+b") as file:
        unit = sendfile2.pwrite_unit(file)
        for offset, count, expected in [
            (1, unit, errno.EINVAL),
            (0, unit + 1, errno.EINVAL),
            (SIZE, unit, errno.ENXIO),
        ]:
            with pytest.raises(sendfile2.NotDetached) as raised:
                sendfile2.pwrite(file, NEW * count, offset)
            assert raised.value.errno == expected
            assert raised.value.written == 0
        assert sendfile2.pwrite(file, memoryview(NEW * unit), unit) == unit
        assert file.read() == OLD * unit + NEW * unit + OLD * (SIZE - 2 * unit)
        assert file.tell() == SIZE


def test_memory_is_refused() -> None:
    number = os.memfd_create("slab")
    os.write(number, OLD * 4096)
    with pytest.raises(sendfile2.NotDetached) as raised:
        sendfile2.pwrite(number, NEW * 4096, 0)
    assert raised.value.errno == errno.EOPNOTSUPP
    assert os.pread(number, 4096, 0) == OLD * 4096
    os.close(number)


def test_what_is_no_bytes_and_no_file_is_refused(path: Path) -> None:
    with open(path, "r+b") as file:
        with pytest.raises(TypeError):
            sendfile2.pwrite(file, 4096, 0)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            sendfile2.pwrite(file, b"", -1)
    with pytest.raises(AttributeError):
        sendfile2.pwrite("slab", b"", 0)  # type: ignore[arg-type]
    with pytest.raises(OSError):
        sendfile2.pwrite(-1, b"", 0)
