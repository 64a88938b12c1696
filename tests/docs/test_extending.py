"""docs/extending.md is an example that runs: its blocks are saved as files, tested and trained with, as it says."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from tests import warm
from tests.docs.pages import files_of

FILES = files_of("extending.md")
MAX_LINES = 30
PARTS = ("mine_aligner.py", "mine_objective.py", "mine_grader.py", "mine_callback.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(arguments, folder)


def test_the_page_holds_its_files() -> None:
    assert FILES.keys() == {*PARTS, "test_mine.py", "mine.yaml"}
    for name in PARTS:
        assert len(FILES[name].splitlines()) <= MAX_LINES, f"{name} is no longer small"


def test_its_tests_pass_and_can_fail(folder: Path) -> None:
    done = run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    for name, right, wrong in (
        ("mine_objective.py", "self.weight / 2 *", "self.weight *"),
        ("mine_aligner.py", "~(is_digit_B", "(is_digit_B"),
        ("mine_grader.py", "1 / (1 + abs", "1 / (2 + abs"),
    ):
        assert right in FILES[name]
        (folder / name).write_text(FILES[name].replace(right, wrong), encoding="utf-8")
    assert "3 failed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py").stdout


def test_its_recipe_trains(folder: Path) -> None:
    small = ["--trainer.max_steps=1", "--data.init_args.num_val_prompts=4", "--data.init_args.batch_size=4"]
    fit = [
        "simct_pl",
        "fit",
        "--recipe",
        "quickstart",
        "--recipe",
        "mine.yaml",
        *small,
        "--trainer.logger=CSVLogger",
        "--trainer.log_every_n_steps=1",
    ]
    done = run(folder, *fit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1" in done.stdout
    [logged] = folder.rglob("metrics.csv")
    rows = list(csv.DictReader(logged.open(encoding="utf-8")))
    assert any(float(row["mine/longest_response"] or 0) >= 1 for row in rows)
    assert any(0 < float(row["eval/accuracy"] or 0) <= 1 for row in rows)
