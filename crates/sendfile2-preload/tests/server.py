# Serves one file to one connection, overwrites it in place as soon as it has been sent, and says so.
import os
import socket
import sys

way, path = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
with open(path, "r+b") as file:
    size = os.path.getsize(path)
    if way == "socket.sendfile":
        sent = connection.sendfile(file)
    else:
        sent = 0
        while sent < size:
            sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)
    assert sent == size
    os.pwrite(file.fileno(), b"B" * size, 0)
print("overwritten", flush=True)
sys.stdin.read()
