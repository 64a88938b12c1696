"""Checks on the files named on the command line, for pre-commit: prints each fault and exits with 1 when there is one.

A file is at most 512 KiB, ends in exactly one newline, has no trailing blanks, no carriage returns and no conflict
markers; a YAML or JSON file parses. Files that are not UTF-8 text are checked for size alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

MAX_BYTES = 512 * 1024
CONFLICT_MARKER = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
TRAILING_BLANK = re.compile(r"[ \t]+$", re.MULTILINE)


def faults(path: Path) -> Iterator[str]:
    """Yield what is wrong with one file."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        yield f"{len(content)} bytes; at most {MAX_BYTES} are committed"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return
    if "\r" in text:
        yield "carriage return; lines end in a bare newline"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield "the file must end in exactly one newline"
    if TRAILING_BLANK.search(text):
        yield "trailing blanks"
    if CONFLICT_MARKER.search(text):
        yield "conflict marker"
    yield from parse_faults(path, text)


def parse_faults(path: Path, text: str) -> Iterator[str]:
    """Yield the parser's message when a YAML or JSON file does not parse."""
    try:
        if path.suffix in {".yaml", ".yml"}:
            yaml.safe_load(text)
        elif path.suffix == ".json":
            json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        yield f"does not parse: {error}"


def main(arguments: list[str]) -> int:
    """Check every file and return the exit code."""
    found = [f"{name}: {fault}" for name in arguments for fault in faults(Path(name))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
