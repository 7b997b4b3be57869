"""The types of arguments."""

from __future__ import annotations

import sys
from typing import Protocol, Union

from ._native import Lease


class HasFileno(Protocol):
    """An open file or socket."""

    def fileno(self) -> int: ...


Descriptor = Union[int, HasFileno]
File = Union[int, HasFileno, Lease]


def refuse_tls(sock: object) -> None:
    """Refuses a socket whose bytes would go past its encryption."""
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(sock, (ssl.SSLSocket, ssl.SSLObject)):
        raise ValueError("a TLS socket encrypts what is written to it: read the file, and write it there")
