"""Asks a server for /slab, overwrites it in place, and counts the bytes that changed of what had been
received by then: python3 overtake.py PORT FILE."""

import fcntl
import socket
import struct
import sys
import termios
import time

port, path = int(sys.argv[1]), sys.argv[2]
limit = time.monotonic() + 30
while True:
    try:
        client = socket.create_connection(("127.0.0.1", port))
        break
    except ConnectionRefusedError:
        if time.monotonic() > limit:
            raise
        time.sleep(0.05)
client.sendall(b"GET /slab HTTP/1.0\r\n\r\n")
received = 0
while received < 65536 and time.monotonic() < limit:
    received = struct.unpack("i", fcntl.ioctl(client, termios.FIONREAD, b"\0" * 4))[0]
with open(path, "r+b") as file:
    file.write(b"B" * (4 << 20))
answer = bytearray()
while len(answer) < received and (part := client.recv(received - len(answer))):
    answer += part
_, _, body = bytes(answer).partition(b"\r\n\r\n")
print(body.count(b"B"))
