"""How many segments a loop of sends over loopback makes: docs/costs.md, "The 64 KiB question"."""

import os
import socket
import sys

size = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(listener.getsockname())
receiver, _ = listener.accept()
if os.fork() == 0:
    sender.close()
    buffer = bytearray(1 << 20)
    while receiver.recv_into(buffer):
        pass
    os._exit(0)
receiver.close()


def segments() -> int:
    """All that this network namespace has sent (OutSegs)."""
    return int(open("/proc/net/snmp").read().split("Tcp:")[2].split()[10])


before, data = segments(), bytes(size)
for _ in range(30_000):
    sender.sendall(data)
print(f"30000 sends of {size} bytes: {segments() - before} segments, acknowledgements among them")
