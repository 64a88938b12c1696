"""`callbacks` is ours with a folder of the user's beside it, whichever of the two Python would find."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest

from simct_pl.config import callback_package
from simct_pl.config.callback_package import install
from simct_pl.config.recipes import PACKAGE

MINE = "import lightning as L\nclass Mine(L.Callback):\n    pass\n"


@pytest.fixture(autouse=True)
def fresh_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing called callbacks is imported; the working directory comes first on sys.path, as for `python -m`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(callback_package, "_theirs", {})
    before, finders = loaded(), list(sys.meta_path)
    for name in before:
        del sys.modules[name]
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)
    sys.meta_path[:] = finders


def loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "callbacks"}


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def ours() -> ModuleType:
    module = importlib.import_module("callbacks")
    assert Path(str(module.__file__)).parent == PACKAGE.parent / "callbacks"
    return module


@pytest.mark.parametrize("init", [{}, {"callbacks/__init__.py": ""}], ids=["namespace", "package"])
def test_ours_and_theirs_are_found_side_by_side(init: dict[str, str]) -> None:
    write({"callbacks/mine.py": MINE, **init})
    install()
    assert ours().RolloutCallback.__module__ == "callbacks.rollout"
    assert issubclass(importlib.import_module("callbacks.mine").Mine, L.Callback)


@pytest.mark.parametrize(
    "files",
    [{"callbacks/__init__.py": "from .mine import Mine\n", "callbacks/mine.py": MINE}, {"callbacks.py": MINE}],
    ids=["package", "module"],
)
def test_a_name_that_only_theirs_has_is_found_in_ours(files: dict[str, str]) -> None:
    write(files)
    install()
    mine = ours().Mine
    assert pickle.loads(pickle.dumps(mine)) is mine
    if "callbacks/mine.py" in files:
        assert importlib.import_module("callbacks.mine").Mine is mine


def test_on_a_clash_ours_wins_and_the_rest_of_theirs_stays() -> None:
    theirs = "class RolloutCallback: pass\nclass Checkpoint: pass\nclass Other: pass\n"
    write({"callbacks/__init__.py": theirs, "callbacks/checkpoint.py": theirs})
    install()
    assert ours().RolloutCallback.__module__ == "callbacks.rollout"
    module = importlib.import_module("callbacks.checkpoint")
    assert module.Checkpoint is ours().Checkpoint
    assert module.Other is not ours().Other
    with pytest.raises(AttributeError, match=r"'callbacks\.checkpoint' has no attribute 'Nothing'"):
        _ = module.Nothing


def test_theirs_may_use_ours() -> None:
    write({"callbacks/__init__.py": "from callbacks import Checkpoint\nclass Mine(Checkpoint): pass\n"})
    install()
    assert issubclass(ours().Mine, ours().Checkpoint)


def test_theirs_may_have_been_imported_before() -> None:
    write({"callbacks/__init__.py": "Mine = 1\n"})
    assert Path(str(importlib.import_module("callbacks").__file__)).is_relative_to(Path.cwd())
    install()
    assert ours().Mine == 1


def test_a_recipe_is_parsed_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the working directory is an empty word on sys.path."""
    write({"callbacks/mine.py": MINE, "callbacks/__init__.py": "from .mine import Mine\n", "elsewhere/r.yaml": ""})
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry != str(tmp_path))])
    install()
    monkeypatch.chdir("elsewhere")
    assert importlib.import_module("callbacks.mine").Mine is ours().Mine


def test_ours_that_was_imported_before_stays_and_learns_of_theirs(tmp_path: Path) -> None:
    os.chdir(PACKAGE.parent)  # as in a program of the user's that imports ours, and then runs a command
    sys.path.insert(0, str(PACKAGE.parent))
    before = ours()
    os.chdir(tmp_path)
    write({"callbacks/mine.py": MINE, "callbacks/checkpoint.py": MINE})
    importlib.import_module("callbacks.checkpoint")
    install()
    assert ours() is before
    assert importlib.import_module("callbacks.mine").Mine.__name__ == "Mine"
    assert importlib.import_module("callbacks.checkpoint").Mine.__name__ == "Mine"
    sys.path.remove(str(PACKAGE.parent))


def test_a_file_of_theirs_that_fails_says_so_each_time() -> None:
    write({"callbacks/__init__.py": "raise ImportError('of mine')\n"})
    install()
    for _ in range(2):
        with pytest.raises(ImportError, match="of mine"):
            _ = ours().Mine


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "simct_pl"], ["-P", "-c", "from simct_pl.commands.main import main; main()"]])
def test_a_recipe_finds_both_however_it_is_started(start: list[str], tmp_path: Path) -> None:
    """`-P` leaves the working directory out of sys.path, as a console script does."""
    write({"callbacks/__init__.py": "", "callbacks/mine.py": MINE})
    write({"o.yaml": "trainer:\n  callbacks+: [callbacks.mine.Mine]\n"})
    command = [sys.executable, *start, "fit", "--recipe", "quickstart", "--recipe", "o.yaml", "--dry_run"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Nothing was loaded" in done.stdout
