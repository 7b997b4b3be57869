"""The send for asyncio."""

from __future__ import annotations

import asyncio
import errno
from typing import Any, Optional, Union

from . import _native
from ._errors import PeerGone, SendTimeout
from ._types import Descriptor, File, refuse_tls


async def send_file_async(
    sock: Union[Descriptor, asyncio.StreamWriter, asyncio.WriteTransport],
    file: File,
    offset: Optional[int] = None,
    count: Optional[int] = None,
    deadline: Optional[float] = None,
) -> int:
    """Sends as ``send_file`` does, by copies, without blocking the event loop: what must be read from
    the disk is read in a thread of the loop's default executor, and no thread waits for the peer.

    ``sock`` may also be a ``StreamWriter`` or a transport, without TLS. What was written to it before is
    sent before. Nothing else may be written to it, or to the socket, until this has returned.

    When it is cancelled, an unknown part has been sent: close the connection.

    Raises what ``send_file`` does.
    """
    loop = asyncio.get_running_loop()
    until = None if deadline is None else loop.time() + deadline
    # That of uvloop is no asyncio.Transport.
    transport: Any = sock.transport if isinstance(sock, asyncio.StreamWriter) else sock
    if not hasattr(transport, "get_extra_info"):
        refuse_tls(transport)
        return await _send(loop, _native.Copier(transport, file, offset, count), until)
    if transport.get_extra_info("sslcontext") is not None:
        raise ValueError("a TLS transport encrypts what is written to it: read the file, and write it there")
    raw = transport.get_extra_info("socket")
    if raw is None:
        raise ValueError("the transport has no socket")
    if transport.is_closing():
        raise PeerGone(errno.ECONNABORTED, "the transport is closed")
    copier = _native.Copier(raw, file, offset, count)
    try:
        while transport.get_write_buffer_size() > 0:
            await _writable(loop, copier, until)
            # The transport writes in this turn of the loop, if it has not yet.
            await asyncio.sleep(0)
            if transport.is_closing():
                raise PeerGone(errno.ECONNABORTED, "the transport was closed before it was flushed")
        return await _send(loop, copier, until)
    finally:
        copier.close()


async def _send(loop: asyncio.AbstractEventLoop, copier: _native.Copier, until: Optional[float]) -> int:
    try:
        while True:
            step = copier.step(True)
            if step == "cold":
                step = await _finished(loop.run_in_executor(None, copier.step, False))
            if step == "done":
                return copier.sent
            if step == "full":
                await _writable(loop, copier, until)
            else:
                await asyncio.sleep(0)  # it is others' turn
    finally:
        copier.close()


async def _finished(step: asyncio.Future[str]) -> str:
    """Waits for a step in a thread, also when cancelled: it may be sending."""
    cancelled = None
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        step.exception()  # or the loop would complain that nobody asked
        raise cancelled
    return step.result()


async def _writable(
    loop: asyncio.AbstractEventLoop, copier: _native.Copier, until: Optional[float]
) -> None:
    """Waits until the socket has room."""
    if until is not None and loop.time() >= until:
        raise SendTimeout(errno.ETIMEDOUT, "the peer does not read: the socket stayed full", copier.sent)
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    # The duplicate has a number of its own, so that the transport's watch is not disturbed.
    number = copier.fileno()
    loop.add_writer(number, wake)
    timer = None if until is None else loop.call_at(until, wake)
    try:
        await ready
    finally:
        loop.remove_writer(number)
        if timer is not None:
            timer.cancel()
