"""Tables in Markdown, and their places in the docs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent.parent / "docs"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, all others are numbers."""
    lines = [headers, ["---", *["--:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """The machine and the versions that a table was measured with."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "trl"))
    return f"{date.today()}, {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {packages}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def publish(section: str, command: str, body: str, *, write: bool, page: str = "performance.md") -> None:
    """Print a section, and put it between its markers in a page of docs/ if write is set.

    Raises:
        ValueError: if the page has no such markers.
    """
    text = f"`{command}` ({machine()})\n\n{body.strip()}\n"
    print(text)
    if not write:
        return
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    path = DOCS / page
    content = path.read_text()
    if begin not in content or end not in content:
        raise ValueError(f"{path} has no place for {section!r}; expected the lines {begin} and {end}.")
    head, rest = content.split(begin, 1)
    tail = rest.split(end, 1)[1]
    path.write_text(f"{head}{begin}\n{text}{end}{tail}")
