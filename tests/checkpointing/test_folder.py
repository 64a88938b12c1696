"""Checkpoints on disk: whole or not there, and the one before is used when the newest is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simct_pl.checkpointing import folder as checkpoints
from simct_pl.checkpointing.folder import MANIFEST, STATE, CheckpointFolder, FlushedIO, Manifest, SavedCheckpoint
from simct_pl.errors import CheckpointError


def save(folder: CheckpointFolder, step: int, content: bytes = b"weights") -> Path:
    staging = folder.staging(step)
    folder.prepare(staging)
    (staging / STATE).write_bytes(content)
    return folder.commit(staging, lambda size, digest: Manifest(step, 1, size, digest, "a: 1", ["id"], {"torch": "2"}))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "new")
    assert folder.newest_good() is None
    path = save(folder, 40)
    found = folder.newest_good()
    assert found is not None
    assert (found.path, found.state.read_bytes()) == (path, b"weights")
    assert found.manifest.step == 40
    assert found.manifest.run_ids == ["id"]


def test_the_newest_few_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step in (2, 4, 100_000_000, 6):
        save(folder, step)
    assert folder.steps() == [6, 100_000_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-100000000"]


def cut_state(path: Path) -> None:
    (path / STATE).write_bytes((path / STATE).read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / STATE).read_bytes())
    content[0] ^= 1
    (path / STATE).write_bytes(content)


def cut_manifest(path: Path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:20])


def no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def other_manifest(path: Path) -> None:
    (path / MANIFEST).write_text(json.dumps({"step": 4}))


def manifest_with(**values: object) -> Callable[[Path], None]:
    """A manifest of the same state, with other values."""

    def damage(path: Path) -> None:
        whole = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps({**whole, **values}))

    return damage


def manifest_of(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / MANIFEST).write_bytes(content)

    return damage


DAMAGES = [
    *(cut_state, flip_a_byte, cut_manifest, no_manifest, other_manifest),
    *(manifest_of(content) for content in (b"", b"\xff\x00", b"[]", b"null", b"3", b"[" * 100_000)),
    *(manifest_with(recipe=recipe) for recipe in ("a: [", "- a", "3", "\x00", 3, None, "[" * 100_000)),
    *(manifest_with(step=step) for step in ("4", None, 4.5, True)),
    manifest_with(num_ranks="1"),
    manifest_with(num_bytes="7"),
    manifest_with(score="high"),
    manifest_with(of_another_version=1),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    folder = CheckpointFolder(tmp_path)
    good, bad = save(folder, 2), save(folder, 4)
    damage(bad)
    with pytest.warns(UserWarning, match=f"{bad}.*{good}"):
        found = folder.newest_good()
    assert found is not None
    assert found.path == good
    damage(good)
    with pytest.raises(CheckpointError, match=r"No checkpoint .* is whole"):
        folder.newest_good()


def test_what_a_killed_save_left_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 2)
    for left_over in (folder.staging(4), tmp_path / ".step-00000001.old"):
        left_over.mkdir()
        (left_over / STATE).write_bytes(b"half")
    assert folder.steps() == [2]
    save(folder, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000006"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 2)
    save(folder, 2, b"other")
    found = folder.newest_good()
    assert found is not None
    assert found.state.read_bytes() == b"other"


def test_a_kill_in_front_of_any_rename_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the renames of a save is cut off once; whatever is there afterwards is whole."""
    num_renames = 0
    for cut in range(4):
        folder = CheckpointFolder(tmp_path / str(cut), keep_last=1)
        save(folder, 2)
        done = 0

        def rename(path: Path, target: Path, usual=Path.rename, cut: int = cut) -> Path:  # type: ignore[no-untyped-def]
            nonlocal done
            if done == cut:
                raise KeyboardInterrupt
            done += 1
            return usual(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            try:
                save(folder, 4)
            except KeyboardInterrupt:
                num_renames += 1
        found = folder.newest_good()
        assert found is not None
        assert found.manifest.step == (2 if cut == 0 else 4)
    assert num_renames == 2  # the new one into place, the old one out of the way


def test_a_state_that_cannot_be_written_is_reported_not_raised(tmp_path: Path) -> None:
    io = FlushedIO()
    io.save_checkpoint({"a": 1}, tmp_path / "missing" / STATE)
    assert isinstance(io.error, FileNotFoundError)
    io.save_checkpoint({"a": 1}, tmp_path / STATE)
    assert io.error is None


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = checkpoints.os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(checkpoints.os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    save(CheckpointFolder(tmp_path), 2)
    assert events == ["fsync", "fsync", "rename", "fsync"]  # manifest, staging folder; in place; parent folder
    events.clear()
    FlushedIO().save_checkpoint({}, tmp_path / STATE)
    assert events == ["fsync"]


def test_reading_a_checkpoint_by_path(tmp_path: Path) -> None:
    path = save(CheckpointFolder(tmp_path), 2)
    assert SavedCheckpoint.read(path).manifest.step == 2
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        SavedCheckpoint.read(tmp_path)


def test_the_best_by_score_stays_and_ties_go_to_the_first(tmp_path: Path) -> None:
    scores = {2: 0.5, 4: 0.7, 6: None, 8: 0.7, 10: 0.1}
    for mode, best in (("max", 4), ("min", 10)):
        folder = CheckpointFolder(tmp_path / mode, keep_last=1, best=mode)  # type: ignore[arg-type]
        for step, score in scores.items():
            staging = folder.staging(step)
            folder.prepare(staging)
            (staging / STATE).write_bytes(b"weights")
            folder.commit(
                staging,
                lambda size, digest, step=step, score=score: Manifest(  # type: ignore[misc]
                    step, 1, size, digest, "", [], {}, metric="eval/accuracy", score=score
                ),
            )
        assert folder.best_step() == best
        assert folder.steps() == sorted({best, 10})
    assert CheckpointFolder(tmp_path / "max").best_step() is None


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, best="max")
    manifest = save(folder, 2) / MANIFEST
    values = json.loads(manifest.read_text())
    del values["metric"], values["score"]
    manifest.write_text(json.dumps(values))
    assert folder.best_step() is None
    assert SavedCheckpoint.read(folder.of_step(2)).manifest.score is None
