"""The wheel holds everything that a run needs, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pip(*arguments: str, cwd: Path) -> None:
    """Run this environment's pip, offline; fail with what it printed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    [path] = folder.glob("simct_pl-*.whl")
    return path


@pytest.fixture(scope="module")
def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("package", ["simct_pl", "callbacks"])
def test_every_file_of_the_packages_is_in_the_wheel(package: str, names_in_wheel: set[str]) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {name for name in files if "__pycache__" not in name}
    assert expected
    assert expected - names_in_wheel == set(), "is a pattern in .gitignore too wide?"


def test_every_recipe_is_in_the_wheel(names_in_wheel: set[str]) -> None:
    recipes = [path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")]
    assert recipes
    assert {f"simct_pl/_recipes/{name}" for name in recipes} - names_in_wheel == set()


def test_a_copy_of_the_callbacks_is_inside_the_package(names_in_wheel: set[str]) -> None:
    files = {path.relative_to(ROOT / "callbacks").as_posix() for path in (ROOT / "callbacks").rglob("*.py")}
    assert {f"simct_pl/_callbacks/{name}" for name in files} - names_in_wheel == set()


def test_nothing_else_is_in_the_wheel(names_in_wheel: set[str]) -> None:
    top = {name.partition("/")[0] for name in names_in_wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"simct_pl", "callbacks"}


def test_the_installed_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=elsewhere)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    # PYTHONPATH comes before an editable install's entry, so this is the wheel and not the checkout.
    locations = run("-c", "import simct_pl, callbacks; print(simct_pl.__file__, callbacks.__file__, sep='\\n')")
    assert all(Path(line).is_relative_to(target) for line in locations.split("\n") if line)
    assert "fit" in run("-m", "simct_pl", "--help")
    # Another distribution has a `callbacks` too, and pip has written its files over ours.
    (target / "callbacks/__init__.py").write_text("class Theirs: pass\n")
    (elsewhere / "callbacks").mkdir()
    (elsewhere / "callbacks/mine.py").write_text("class Mine: pass\n")
    found = run(
        "-c",
        "from simct_pl.config.callback_package import install; install(); import callbacks, callbacks.mine as mine; "
        "print(callbacks.RolloutCallback.__module__, callbacks.Theirs.__name__, mine.Mine.__name__)",
    )
    assert found.split() == ["callbacks.rollout", "Theirs", "Mine"]
