"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.errors import ExportError
from simct_pl.models.export import check_file, check_output, write_folder


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


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "out", lambda folder: (folder / "config.json").write_text("old") and None)
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(ExportError, match="What was there before is untouched"):
        write_folder(tmp_path / "out", lambda folder: (folder / "config.json").write_text("new") and None)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_does_not_replace_what_it_starts_from(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for output in (tmp_path / "model", tmp_path / "other/../model", tmp_path / "link"):
        with pytest.raises(ExportError, match="is a model that the run starts from"):
            check_output(output, (str(tmp_path / "model"),))
    check_output(tmp_path / "model", ("org/model",))


def test_a_file_is_made_at_home_and_never_where_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_file(Path("~/pages/page.html")) == tmp_path / "pages/page.html"
    with pytest.raises(ExportError, match="is a folder; expected the path of a file"):
        check_file(tmp_path / "pages")


def test_what_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file", "file/below"):
        with pytest.raises(ExportError, match="Choose another output folder"):
            write_folder(tmp_path / name, lambda folder: None)
    assert (tmp_path / "thesis" / "chapter").read_text() == "one"
    assert (tmp_path / "file").read_text() == "x"
