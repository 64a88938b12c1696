"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.errors import ExportError
from simct_pl.export import write_folder


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_folder(tmp_path / "out", lambda folder, text=text: (folder / "config.json").write_text(text) and None)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    def full_disk(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "out", lambda folder: (folder / "config.json").write_text("old") and None)
    with pytest.raises(ExportError, match="No space"):
        write_folder(tmp_path / "out", full_disk)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "out", lambda folder: (folder / "config.json").write_text("old") and None)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExportError, match="before is untouched"):
        write_folder(tmp_path / "out", lambda folder: (folder / "config.json").write_text("new") and None)
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_what_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file", "file/below"):
        with pytest.raises(ExportError, match="Choose another output folder"):
            write_folder(tmp_path / name, lambda folder: None)
    assert (tmp_path / "thesis" / "chapter").read_text() == "one"
    assert (tmp_path / "file").read_text() == "x"
