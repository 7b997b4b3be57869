"""An ASGI middleware that sends files: see ``SendFileMiddleware``."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Any, Awaitable, Callable, MutableMapping, Optional

from ._aio import send_file_async
from ._errors import PeerGone

__all__ = ["SendFileMiddleware"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_ZEROCOPYSEND = "http.response.zerocopysend"
_PATHSEND = "http.response.pathsend"
_BODY = "http.response.body"

# The servers whose responses are known: what follows the headers is the body's bytes, and nothing
# else writes to the transport meanwhile.
_KNOWN = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")

_CHUNK = 256 << 10


class SendFileMiddleware:
    """ASGI middleware that answers ``http.response.zerocopysend`` and ``http.response.pathsend``.

    It is the outermost: ``uvicorn.run(SendFileMiddleware(app))``. Under uvicorn, over plain HTTP/1 with
    a ``Content-Length``, files go from the page cache into the socket by one copy, past Python. By any
    other way (TLS, HTTP/2, chunked bodies, other servers, another middleware around it) the file
    is read and passed on. In both ways the client gets what the file had while it was sent: once
    the application's ``send`` has returned, the file may be overwritten.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        extensions = {**(scope.get("extensions") or {}), _ZEROCOPYSEND: {}, _PATHSEND: {}}
        response = _Response(scope["method"], receive, send)
        await self.app({**scope, "extensions": extensions}, response.receive, response.send)


class _Sent(bytes):
    """The stand-in for bytes of the body that were sent: the server counts them, and writes none."""

    length: int

    def __len__(self) -> int:
        return self.length


def _sent(length: int) -> _Sent:
    sent = _Sent()
    sent.length = length
    return sent


class _Response:
    def __init__(self, method: str, receive: Receive, send: Send) -> None:
        self._head = method == "HEAD"
        self._receive = receive
        self._send = send
        # Messages follow one another, whoever sends them.
        self._lock = asyncio.Lock()
        self._quiet = asyncio.Event()
        self._quiet.set()
        # What is left of the Content-Length; None: no body of so many bytes.
        self._left: Optional[int] = None

    async def receive(self) -> Message:
        # It makes the server read, which may answer what it reads.
        await self._quiet.wait()
        return await self._receive()

    async def send(self, message: Message) -> None:
        async with self._lock:
            kind = message["type"]
            if kind == _ZEROCOPYSEND:
                file = message["file"]
                number = file if isinstance(file, int) else file.fileno()
                more = message.get("more_body", False)
                await self._file(number, message.get("offset"), message.get("count"), more)
            elif kind == _PATHSEND:
                loop = asyncio.get_running_loop()
                flags = os.O_RDONLY | os.O_CLOEXEC
                number = await loop.run_in_executor(None, os.open, message["path"], flags)
                try:
                    await self._file(number, 0, None, False)
                finally:
                    os.close(number)
            else:
                if kind == "http.response.start":
                    self._left = _length(message)
                elif kind == _BODY and self._left is not None:
                    self._left -= len(message.get("body", b""))
                await self._send(message)

    async def _file(
        self, file: int, offset: Optional[int], count: Optional[int], more: bool
    ) -> None:
        if self._head:
            await self._body(b"", more)
            return
        transport = self._transport()
        info = os.fstat(file)
        if transport is None or not stat.S_ISREG(info.st_mode):
            await self._read(file, offset, count, more)
            return
        start = os.lseek(file, 0, os.SEEK_CUR) if offset is None else offset
        length = max(info.st_size - start, 0)
        length = length if count is None else min(length, count)
        if self._left is None or length > self._left:
            # The server refuses it.
            await self._read(file, offset, count, more)
            return
        await self._past(transport, file, start, length, more)
        if offset is None:
            os.lseek(file, start + length, os.SEEK_SET)

    def _transport(self) -> Optional[asyncio.Transport]:
        """The transport, if the body's bytes are all that is written to it now."""
        cycle = getattr(self._send, "__self__", None)
        known = type(cycle).__module__ in _KNOWN and type(cycle).__name__ == "RequestResponseCycle"
        if cycle is None or not known or self._left is None or cycle.disconnected:
            return None
        transport: asyncio.Transport = cycle.transport
        if transport.get_extra_info("sslcontext") is not None or transport.is_closing():
            return None
        return transport

    async def _past(
        self, transport: asyncio.Transport, file: int, offset: int, length: int, more: bool
    ) -> None:
        """Sends past the server, which neither reads nor writes meanwhile."""
        reading = transport.is_reading()
        self._quiet.clear()
        transport.pause_reading()
        try:
            sent = await send_file_async(transport, file, offset, length)
            if sent < length:
                raise RuntimeError(f"the file ended after {sent} of the {length} bytes that were announced")
        except PeerGone:
            # As the server, which says nothing when nobody listens.
            transport.abort()
        except BaseException:
            # The client must not take what comes next for the rest.
            transport.abort()
            raise
        finally:
            self._quiet.set()
            if reading and not transport.is_closing():
                transport.resume_reading()
        await self._body(_sent(length), more)

    async def _read(
        self, file: int, offset: Optional[int], count: Optional[int], more: bool
    ) -> None:
        """Reads the file, and passes it on."""
        loop = asyncio.get_running_loop()
        while count is None or count > 0:
            most = _CHUNK if count is None else min(count, _CHUNK)
            if offset is None:
                data = await loop.run_in_executor(None, os.read, file, most)
            else:
                data = await loop.run_in_executor(None, os.pread, file, most, offset)
                offset += len(data)
            if not data:
                break
            count = None if count is None else count - len(data)
            await self._body(data, True)
        await self._body(b"", more)

    async def _body(self, body: bytes, more: bool) -> None:
        if self._left is not None:
            self._left -= len(body)
        await self._send({"type": _BODY, "body": body, "more_body": more})


def _length(message: Message) -> Optional[int]:
    """The ``Content-Length`` of a response whose body has just so many bytes."""
    if message["status"] < 200 or message["status"] in (204, 304):
        return None
    headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or any(name == b"transfer-encoding" for name, _ in headers):
        return None
    return int(lengths[0]) if lengths[0].isdigit() else None
