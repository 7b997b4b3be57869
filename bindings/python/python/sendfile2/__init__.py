"""The safe ``sendfile(2)`` for Linux.

``os.sendfile`` and ``socket.sendfile`` return before the bytes have left: who overwrites the file then
changes what the peer receives. Here a send returns when the file may be overwritten, and an overwrite
changes nothing that is in flight, or is refused.

See ``docs/python.md`` of the source for what is promised.
"""

from ._aio import send_file_async
from ._errors import LeaseError, LeaseRevoked, NotDetached, PeerGone, SendError, SendTimeout
from ._native import GuardedFile, Lease, __version__, pwrite, pwrite_unit
from ._sync import send_file

__all__ = [
    "GuardedFile",
    "Lease",
    "LeaseError",
    "LeaseRevoked",
    "NotDetached",
    "PeerGone",
    "SendError",
    "SendTimeout",
    "__version__",
    "pwrite",
    "pwrite_unit",
    "send_file",
    "send_file_async",
]
