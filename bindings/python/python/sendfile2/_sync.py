"""The blocking send."""

from __future__ import annotations

from typing import Literal, Optional

from . import _native
from ._types import Descriptor, File, refuse_tls


def send_file(
    sock: Descriptor,
    file: File,
    offset: Optional[int] = None,
    count: Optional[int] = None,
    deadline: Optional[float] = None,
    *,
    engine: Literal["auto", "copy", "uring"] = "auto",
) -> int:
    """Sends ``count`` bytes of ``file`` from ``offset`` on, and returns when they are released: the
    kernel no longer reads them, and they may be overwritten. That the peer has them is not said.

    ``sock`` is a connected stream socket, which stays the caller's. ``file`` is an open file, its
    descriptor, or a ``Lease``; its position neither counts nor changes, and what is in a buffer of
    Python's is not seen. Without ``offset``: from the start (of a lease: of its range); without
    ``count``: to the end.

    Returns the bytes that were sent: ``count``, or fewer where the file ends before.

    ``deadline`` is in seconds from now; without it the socket's timeout counts. Any other thread runs
    meanwhile. ``engine``: ``"copy"`` copies the bytes once into the socket; ``"uring"`` lets the
    network read the file itself, by io_uring; ``"auto"`` takes that from 16 KiB on over TCP to another
    host where the kernel allows it, and a deadline bounds it: no signal ends it.

    Raises ``SendTimeout``, ``PeerGone`` or another ``SendError``, whose ``sent`` and ``released`` tell
    how far it got; ``LeaseError``; ``ValueError`` for TLS, a socket that is no stream, or a
    non-blocking one without a deadline.
    """
    refuse_tls(sock)
    if deadline is None and not isinstance(sock, int):
        timeout = getattr(sock, "gettimeout", lambda: None)()
        if timeout == 0:
            raise ValueError("the socket is non-blocking: give a deadline, or use send_file_async")
        deadline = timeout
    return _native.send_file(sock, file, offset, count, deadline, engine)
