"""The engine ``auto`` towards another host: a network namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LIMIT, Pair, uring_or_skip

# Runs as root of namespaces of its own, with the path of a file that is larger than a socket takes.
SCRIPT = r"""
import os, socket, subprocess, sys, time
import sendfile2

RECEIVER = '''
import socket
with socket.create_server(("10.9.0.2", 7000)) as listener:
    print("listens", flush=True)
    input()
'''

def run(*command):
    subprocess.run(command, check=True)

host = subprocess.Popen(["unshare", "--net", "sleep", "60"])
space = f"/proc/{host.pid}/ns/net"
while os.readlink(space) == os.readlink("/proc/self/ns/net"):
    time.sleep(0.01)
there = ["nsenter", "--net=" + space]
run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(host.pid))
for where, device, address in [([], "v0", "10.9.0.1/24"), (there, "v1", "10.9.0.2/24")]:
    run(*where, "ip", "address", "add", address, "dev", device)
    run(*where, "ip", "link", "set", device, "up")
command = [*there, sys.executable, "-c", RECEIVER]
receiver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
receiver.stdout.readline()

for deadline, engine, timeout in [(0.3, "auto", None), (None, "auto", 0.3), (0.3, "copy", None)]:
    sock = socket.create_connection(("10.9.0.2", 7000))
    sock.settimeout(timeout)
    with open(sys.argv[1], "rb") as file:
        try:
            sendfile2.send_file(sock, file, deadline=deadline, engine=engine)
        except sendfile2.SendTimeout as error:
            print("released" if error.released else "by reference")
receiver.communicate(b"\n")
host.kill()
"""


def test_by_reference_where_the_kernel_allows_it(pair: Pair, path: Path) -> None:
    namespaces = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*namespaces, "ip", "link"], capture_output=True).returncode:
        pytest.skip("another host: no network namespace can be made")
    uring_or_skip(pair)
    with open(path, "r+b") as file:
        file.truncate(64 << 20)
    command = [*namespaces, sys.executable, "-c", SCRIPT, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT)
    assert output.stdout.splitlines() == ["by reference", "by reference", "released"], output.stderr
