"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from simct_pl.errors import ExportError
from simct_pl.files.atomic import STALE_SECONDS, whole_file, whole_folder, write_errors


def write_folder(path: Path, text: str) -> None:
    with whole_folder(path) as folder:
        (folder / "config.json").write_text(text)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_folder(tmp_path / "out", text)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), KeyError("x")])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_the_writer_raises_comes_through_and_leaves_what_was_there(
    tmp_path: Path, whole: Callable[[Path], AbstractContextManager[Path]], error: BaseException
) -> None:
    def write(fresh: Path) -> None:
        (fresh / "config.json" if fresh.is_dir() else fresh).write_text("half")
        raise error

    write_folder(tmp_path / "out", "old")
    with pytest.raises(type(error)) as raised, whole(tmp_path / "out") as fresh:
        write(fresh)
    assert raised.value is error
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_errors_name_the_output(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ExportError, match=r"a' cannot be written: .*No space"), write_errors(tmp_path / "a"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(ExportError, match="cannot be written: 'x'"), write_errors(tmp_path / "a", KeyError):
        fail(KeyError("x"))
    (tmp_path / "file").write_text("x")
    for whole in (whole_file, whole_folder):
        with pytest.raises(ExportError, match="below' cannot be written"), whole(tmp_path / "file/below"):
            pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="Is a directory"), whole_file(tmp_path / "folder") as part:
        part.write_text("x")


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "out", "old")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(ExportError, match="What was there before is untouched"):
        write_folder(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_all_content_is_flushed_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note(usual):  # type: ignore[no-untyped-def]
        return lambda path, target: (events.append("renamed"), usual(path, target))[1]

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note(rename))
    monkeypatch.setattr(Path, "replace", note(replace))
    with whole_folder(tmp_path / "out") as folder:
        (folder / "below").mkdir()
        (folder / "below/a").write_text("x")
    assert sorted(events[:2]) == ["a", "below"]
    assert events[2:] == ["new", "renamed", tmp_path.name]
    events.clear()
    with whole_file(tmp_path / "file") as part:
        part.write_text("x")
    assert events == ["new", "renamed", tmp_path.name]


def test_what_a_killed_process_left_goes_away_when_it_is_old(tmp_path: Path) -> None:
    left, young, other = (
        tmp_path / name for name in (".out-abcdefg1.part", ".out-abcdefg2.part", ".out-2-abcdefg1.part")
    )
    for path in (left, young, other):
        path.mkdir()
        (path / "new").write_text("half")
    before = time.time() - STALE_SECONDS - 1
    for path in (left, other):
        os.utime(path, (before, before))
    write_folder(tmp_path / "out", "new")
    assert names_in(tmp_path) == sorted(["out", young.name, other.name])


def test_a_written_file_may_be_read_by_whom_any_other_file_may(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("x")
    with whole_file(tmp_path / "file") as part:
        part.write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    with whole_folder(tmp_path / "out"):
        pass
    (tmp_path / "usual-folder").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual-folder").stat().st_mode
