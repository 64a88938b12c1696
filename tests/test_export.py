"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.export import write_folder


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_folder(tmp_path / "out", lambda folder, text=text: (folder / "a").write_text(text) and None)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    def full_disk(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "out", lambda folder: (folder / "a").write_text("old") and None)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "out", full_disk)
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
