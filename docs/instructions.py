"""How many user instructions an HTTP server needs for a request, counted by valgrind.

python3 docs/instructions.py PORT PATH SERVER ARGUMENT...

The server listens on the PORT of 127.0.0.1, and stays in the foreground, in one process. It is
asked for PATH on 32 connections at a time. It runs twice, with a different number of requests: what
its start and its end take does not count.

Valgrind 3.24 or later: one before does not know openat2(2). With CALLGRIND_OUT=FILE the profile of the longer run is kept, for callgrind_annotate.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

CONNECTIONS = 32
ROUNDS = (50, 250)


def connect(port, server):
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if server.poll() is not None:
                sys.exit("the server has ended")
            time.sleep(0.1)
    sys.exit("the server does not listen")


def answer(stream):
    got = b""
    while b"\r\n\r\n" not in got:
        piece = stream.recv(1 << 20)
        if not piece:
            sys.exit("the server has closed a connection")
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"the server answers: {head.decode()}")
    left = int(re.search(rb"(?i)\ncontent-length: (\d+)", head)[1]) - len(body)
    while left > 0:
        left -= len(stream.recv(min(left, 1 << 20)))


def ask(port, path, server, rounds):
    streams = [connect(port, server) for _ in range(CONNECTIONS)]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    for _ in range(rounds):
        for stream in streams:
            stream.sendall(request)
        for stream in streams:
            answer(stream)
    for stream in streams:
        stream.close()


def instructions(port, path, command, rounds):
    with socket.socket() as other:
        if other.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit("another server listens on this port")
    out = os.environ.get("CALLGRIND_OUT", "/dev/null")
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command]
    server = subprocess.Popen(valgrind, stderr=subprocess.PIPE, text=True)
    try:
        ask(port, path, server, rounds)
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate()[1]
    return int(re.search(r"Collected : (\d+)", said)[1])


def main():
    port, path, *command = sys.argv[1:]
    few, many = (instructions(int(port), path, command, rounds) for rounds in ROUNDS)
    each = (many - few) / (CONNECTIONS * (ROUNDS[1] - ROUNDS[0]))
    print(f"{each:.0f} user instructions a request")


main()
