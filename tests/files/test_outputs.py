"""Outputs are refused before the work, and nobody's files are ever replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.errors import ExportError, RecipeError
from simct_pl.files.outputs import check_file, check_new, check_output


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
            check_output(tmp_path / name)


def test_what_is_new_needs_a_free_place_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match=r"file' exists; remove it"):
        check_new(tmp_path / "file")
    with pytest.raises(ExportError, match="cannot be made"):
        check_new(tmp_path / "file/below")
    check_new(tmp_path / "new/model")
