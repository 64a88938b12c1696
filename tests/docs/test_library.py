"""docs/library.md: both scripts run as they stand there, and train."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import warm
from tests.docs.pages import files_of

SCRIPTS = files_of("library.md")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each script prints, beside the files that the second one imports."""
    folder = tmp_path_factory.mktemp("library")
    for name, code in (SCRIPTS | files_of("extending.md")).items():
        (folder / name).write_text(code, encoding="utf-8")
    return {name: run(folder, name) for name in SCRIPTS}


def run(folder: Path, name: str) -> str:
    done = warm.run([name.removesuffix(".py")], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_is_short() -> None:
    assert SCRIPTS.keys() == {"library.py", "library_mine.py"}
    statements = [
        node for node in ast.parse(SCRIPTS["library.py"]).body if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(statements) <= 10


def test_it_trains_and_scores(printed: dict[str, str]) -> None:
    [shown] = re.findall(r"^(\{'eval/.*\})$", printed["library.py"], re.MULTILINE)
    scores = ast.literal_eval(shown)
    assert scores["step"] == 3.0
    assert scores["eval/coverage"] == 1.0
    assert 0 < scores["eval/loss"] < 1
    assert 0 < scores["eval/accuracy"] < 1, "32 problems, some right"


def test_classes_of_ones_own_are_used(printed: dict[str, str]) -> None:
    [(longest, nearness)] = re.findall(r"longest response (\d+) tokens, nearness (\d\.\d+)", printed["library_mine.py"])
    assert int(longest) > 10
    assert 0 < float(nearness) < 1
