"""The pre-commit check, on files with one fault each."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_hygiene import MAX_BYTES, main

FAULTS = {
    "trailing blanks": ("a.py", b"x = 1 \n"),
    "exactly one newline": ("a.py", b"x = 1\n\n"),
    "carriage return": ("a.py", b"x = 1\r\n"),
    "conflict marker": ("a.py", b"<" * 7 + b" ours\n"),
    "does not parse: while": ("a.yaml", b"a: [1\n"),
    "does not parse: Expecting": ("a.json", b"{,}\n"),
    f"at most {MAX_BYTES}": ("a.bin", b"\xff" * (MAX_BYTES + 1)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_each_fault_is_named(message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content = FAULTS[message]
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name)]) == 1
    [line] = capsys.readouterr().out.splitlines()[:1]
    assert message in line


def test_clean_files_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = {"a.py": b"x = 1\n", "empty.py": b"", "a.yaml": b"a: 1\n", "a.json": b"{}\n", "a.bin": b"\xff \n\n"}
    for name, content in clean.items():
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name) for name in clean]) == 0
    assert capsys.readouterr().out == ""
