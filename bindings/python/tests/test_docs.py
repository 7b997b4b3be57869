"""The examples of docs/python.md, and what else the checkout says of the package."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import NEW, OLD, Pair, Reader

import sendfile2

CHECKOUT = Path(__file__).parents[3]
COUNT = 65_536


def examples() -> list[str]:
    text = (CHECKOUT / "docs/python.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example, "docs/python.md", "exec"), names)
    return names


def test_the_types_of_the_examples(tmp_path: Path) -> None:
    files = []
    for number, example in enumerate(examples()):
        files.append(tmp_path / f"example{number}.py")
        files[-1].write_text(example)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), *map(str, files)]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


def test_the_blocking_server(pair: Pair, path: Path) -> None:
    run(examples()[0])["serve"](pair.sender, str(path), NEW * COUNT)
    assert path.read_bytes().startswith(NEW * COUNT)
    assert pair.received(COUNT) == OLD * COUNT


def test_the_asyncio_server(pair: Pair, path: Path) -> None:
    names = run(examples()[1])

    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=pair.sender)
        with sendfile2.GuardedFile(path) as slab:
            await names["serve"](writer, slab)
            await names["recycle"](slab, NEW * COUNT)
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())
    assert path.read_bytes().startswith(NEW * COUNT)
    assert Reader(pair.receiver).all() == b"header\n" + OLD * COUNT


def test_the_asgi_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import exactly
    from test_asgi import Server, header

    monkeypatch.chdir(path.parent)
    server = Server(run(examples()[2])["app"])
    with server.get(b"GET /slab HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        header(client)
        assert exactly(client, len(path.read_bytes())) == path.read_bytes()
    server.close()


def test_the_version_is_that_of_the_workspace() -> None:
    text = (CHECKOUT / "Cargo.toml").read_text()
    assert f'version = "{sendfile2.__version__}"' in text
