#!/usr/bin/env python3
"""Makes docs/demo.svg, the picture in the README, of what the demo prints here.

    cargo build --release && pip install rich && python3 docs/demo.py
"""
import os
import pty
import re

from rich.console import Console
from rich.text import Text

output = bytearray()


def read(fd):
    data = os.read(fd, 4096)
    output.extend(data)
    return data


os.environ.update(COLUMNS="82", TERM="xterm-256color")
pty.spawn(["sh", "-c", "stty cols 82 rows 60; target/release/sendfile2 demo 2>/dev/null"], read)
text = output.decode().replace("\r", "").replace(os.getcwd(), ".")
text = text.split("\n\nFree after")[0]  # how the times are defined: in the terminal, and not here
console = Console(record=True, width=84, file=open(os.devnull, "w"))
console.print(Text.from_ansi("$ cargo run --release -- demo\n" + text))
svg = console.export_svg(title="sendfile2 demo")
svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # no fonts from elsewhere
svg = re.sub(r"<!-- Generated.*?-->\s*", "", svg)
with open("docs/demo.svg", "w") as file:
    file.write(svg)
