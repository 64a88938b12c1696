"""The pages of docs/, and what is written in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for found, code in FENCE.findall(read(page)) if found == language]


def files_of(page: str) -> dict[str, str]:
    """The blocks whose first line is a comment with a file's name, by that name."""
    everything = [*blocks(page, "python"), *blocks(page, "yaml")]
    named = ((re.match(r"# ([\w.]+\.(?:py|yaml))\n", code), code) for code in everything)
    return {match[1]: code for match, code in named if match}
