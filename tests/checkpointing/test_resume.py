"""Which checkpoint a fit starts from, and which recipes may go on from it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import yaml

import callbacks
from simct_pl.checkpointing.folder import CheckpointFolder, Manifest, SavedCheckpoint
from simct_pl.checkpointing.resume import AUTO, NEVER, check_same_run, choose_checkpoint, only_reports
from simct_pl.errors import CheckpointError, RecipeError
from tests.checkpointing.test_folder import save


def recipe(**changes: Any) -> str:
    values: dict[str, Any] = {
        "seed_everything": 0,
        "model": {"init_args": {"optimizer": {"lr": 1e-4}, "chunk_tokens": 64}},
        "trainer": {
            "max_steps": 10,
            "default_root_dir": "runs/a",
            "logger": {"class_path": "x.Y", "init_args": {"uri": "u"}},
            "callbacks": [
                {"class_path": "callbacks.RolloutCallback", "init_args": {"num_samples": 1}},
                {"class_path": "callbacks.HFExport", "init_args": {"output": "a"}},
                "callbacks.TimingCallback",
            ],
        },
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        inner = values
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return yaml.safe_dump(values)


def checkpoint(num_ranks: int = 1) -> SavedCheckpoint:
    return SavedCheckpoint(Path("c"), Manifest(4, num_ranks, 0, "", recipe(), [], {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer__default_root_dir": "runs/b"},
        {"trainer__logger": False},
        {"trainer__enable_progress_bar": False},
        {
            "trainer__callbacks": [
                {"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 1}},
                {"class_path": "callbacks.RolloutCallback", "init_args": {"num_samples": 1}},
            ]
        },
    ],
    ids=["same", "folder", "logger", "progress bar", "reporting callbacks"],
)
def test_what_only_reports_may_differ(changes: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    check_same_run(checkpoint(), recipe(**changes), 1)
    assert not recwarn.list


def test_what_rounds_differently_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="chunk_tokens"):
        check_same_run(checkpoint(), recipe(model__init_args__chunk_tokens=32), 1)


def test_a_recipe_that_holds_nonsense_is_another_recipe(tmp_path: Path) -> None:
    for nonsense in ([3], [None], [{"no": "class_path"}], [{"class_path": 3}]):
        changed = recipe(trainer__callbacks=nonsense)
        manifest = Manifest(4, 1, 0, "", changed, [], {})
        with pytest.raises(RecipeError, match="The recipe differs from the checkpoint's"):
            check_same_run(SavedCheckpoint(tmp_path, manifest), recipe(), 1)


def test_a_broken_checkpoint_that_was_asked_for_is_refused_with_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: .*--resume alone"):
        choose_checkpoint(str(tmp_path), CheckpointFolder(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed_everything": 1}, "seed_everything: 0 → 1"),
        ({"model__init_args__optimizer": {"lr": 2e-4}}, r"model.init_args.optimizer.lr: 0.0001 → 0.0002"),
        ({"trainer__max_steps": 20}, "trainer.max_steps: 10 → 20"),
        ({"trainer__gradient_clip_val": 1.0}, "trainer.gradient_clip_val: None → 1.0"),
        (
            {"trainer__callbacks": [{"class_path": "callbacks.RolloutCallback", "init_args": {"num_samples": 2}}]},
            "trainer.callbacks.RolloutCallback.num_samples: 1 → 2",
        ),
        ({"trainer__callbacks": ["callbacks.Own"]}, "trainer.callbacks.Own"),
    ],
)
def test_what_changes_numbers_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        check_same_run(checkpoint(), recipe(**changes), 1)


def test_the_callbacks_that_only_report_say_so() -> None:
    found = {name for name in callbacks.__all__ if only_reports(f"callbacks.{name}")}
    assert set(callbacks.__all__) - found == {"CollapseGuard", "RolloutCallback", "TeacherRollout"}


def test_a_callback_of_somebody_elses_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModuleType("own_callbacks")
    own.Table = type("Table", (L.Callback,), {"only_reports": True})  # type: ignore[attr-defined]
    own.Noise = type("Noise", (L.Callback,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, own.__name__, own)
    added = yaml.safe_load(recipe())["trainer"]["callbacks"]
    check_same_run(checkpoint(), recipe(trainer__callbacks=[*added, "own_callbacks.Table"]), 1)
    with pytest.raises(RecipeError, match=r"trainer\.callbacks\.Noise"):
        check_same_run(checkpoint(), recipe(trainer__callbacks=[*added, "own_callbacks.Noise"]), 1)


def test_a_class_that_is_not_loaded_counts_and_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_a_stranger.py").write_text("class Table:\n    only_reports = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    added = [*yaml.safe_load(recipe())["trainer"]["callbacks"], "module_of_a_stranger.Table"]
    strange = SavedCheckpoint(Path("c"), Manifest(4, 1, 0, "", recipe(trainer__callbacks=added), [], {}))
    with pytest.raises(RecipeError, match=r"trainer\.callbacks\.Table"):
        check_same_run(strange, recipe(), 1)
    assert "module_of_a_stranger" not in sys.modules


def test_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(RecipeError, match="2 ranks, this run has 1"):
        check_same_run(checkpoint(num_ranks=2), recipe(), 1)


def test_choosing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert choose_checkpoint(NEVER, None) is None
    assert choose_checkpoint(NEVER, folder) is None
    assert choose_checkpoint(AUTO, folder) is None  # the command of a requeued job also begins the run
    first, second = save(folder, 2), save(folder, 4)
    newest, chosen = choose_checkpoint(AUTO, folder), choose_checkpoint(str(first), folder)
    assert newest is not None
    assert chosen is not None
    assert (newest.path, chosen.path) == (second, first)
    with pytest.raises(CheckpointError, match=r"step 4.*--resume"):
        choose_checkpoint(NEVER, folder)
    with pytest.raises(RecipeError, match=r"callbacks\.Checkpoint"):
        choose_checkpoint(AUTO, None)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        choose_checkpoint(str(tmp_path / "nowhere"), folder)
