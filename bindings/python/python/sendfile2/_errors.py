"""The exceptions of this package."""

from __future__ import annotations


class SendError(OSError):
    """A send that ended early.

    What was sent cannot be taken back: unless ``sent`` is 0, the connection is of use only to who
    goes on behind those bytes.
    """

    sent: int
    """The bytes that the socket has taken."""

    released: bool
    """Whether the kernel no longer reads them from the file. If not, the file must not be overwritten
    in place: ``pwrite`` detaches what is in flight."""

    def __init__(self, errno: int, text: str, sent: int = 0, released: bool = True) -> None:
        super().__init__(errno, text)
        self.sent = sent
        self.released = released


class SendTimeout(SendError, TimeoutError):
    """The deadline of a send passed."""


class PeerGone(SendError, ConnectionError):
    """The peer has closed the connection, or reset it."""


class NotDetached(OSError):
    """A range that could not be overwritten without changing what is in flight.

    Nothing was written behind the first ``written`` bytes, and nothing at all in place.
    """

    written: int
    """The bytes that were written before."""

    def __init__(self, errno: int, text: str, written: int = 0) -> None:
        super().__init__(errno, text)
        self.written = written


class LeaseError(RuntimeError):
    """A lease that does not cover a range, or in the way of the thread that has it."""


class LeaseRevoked(LeaseError):
    """A lease that a writer has revoked, since it waited no longer (``write_at_abort``)."""
