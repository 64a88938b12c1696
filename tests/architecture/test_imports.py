"""Who may import whom, and what an import must not drag in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, imported_packages, modules, name_of

VLLM_MODULES = {"simct_pl/rollout/vllm.py", "simct_pl/rollout/vllm_nccl.py"}
HEAVY = ("torch", "lightning", "vllm", "transformers", "mlflow")


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after a statement, which may print to stderr."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["simct_pl", "simct_pl.errors", "simct_pl.commands.main"])
def test_the_front_doors_import_nothing_heavy(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--recipe", "quikstart"],
        ["fit", "--recipe", "quickstart", "--recipe", "no/such.yaml"],
        ["fit", "--recipe=broken.yaml"],
        ["fit", "--recipe"],
        ["validate", "--resume"],
        ["preflight", "--recipe", "quikstart"],
        ["evaluate", "--recipe", "quikstart"],
        ["sweep", "--recipe", "quikstart"],
        ["fti"],
    ],
    ids=" ".join,
)
def test_what_is_misspelt_is_refused_before_anything_heavy(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [unclosed")
    statement = f"import os; os.chdir({str(tmp_path)!r})\nfrom simct_pl.commands.main import main"
    assert modules_after(f"{statement}\nassert main({arguments!r}) == 2").isdisjoint(HEAVY)


def test_the_trainers_command_line_adds_no_heavy_import_to_lightnings() -> None:
    """`fit --help` takes as long as Lightning does. The tracker, data sets and callbacks wait until they are used."""
    added = modules_after("import simct_pl.config.lightning_cli") - modules_after("import lightning.pytorch.cli")
    assert "simct_pl" in added
    assert added.isdisjoint({"mlflow", "sqlalchemy", "datasets", "callbacks", "vllm", "gguf", "math_verify"})


def test_the_callbacks_bring_neither_tracker_nor_graders() -> None:
    assert modules_after("import callbacks").isdisjoint({"mlflow", "sqlalchemy", "vllm", "gguf", "math_verify"})


def test_every_module_imports_and_none_needs_vllm() -> None:
    """One interpreter with every module but the vLLM engines', and `__main__`, which is a program."""
    paths = [path for path in modules("simct_pl", "callbacks") if name_of(path) not in VLLM_MODULES]
    dotted = [name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    names = [name for name in dotted if not name.endswith("__main__")]
    assert len(names) > 20
    assert "vllm" not in modules_after("\n".join(f"import {name}" for name in names))


def test_only_the_engine_modules_import_vllm() -> None:
    importers = {name_of(path) for path in modules("simct_pl", "callbacks") if "vllm" in imported_packages(path)}
    assert importers <= VLLM_MODULES


def test_the_library_never_imports_the_callbacks() -> None:
    importers = [name_of(path) for path in modules("simct_pl") if "callbacks" in imported_packages(path)]
    assert importers == []


def test_only_commands_import_commands() -> None:
    """What a command uses is handed what it needs of the command line, and does not reach up for it."""
    paths = [path for path in modules("simct_pl", "callbacks") if not name_of(path).startswith("simct_pl/commands/")]
    importers = [name_of(path) for path in paths if "simct_pl.commands" in path.read_text(encoding="utf-8")]
    allowed = {"simct_pl/__main__.py", "simct_pl/preflight/report.py"}  # the second for the type of a planned run
    assert set(importers) <= allowed


def test_the_library_never_imports_tests_or_benchmarks() -> None:
    paths = modules("simct_pl", "callbacks")
    importers = [name_of(path) for path in paths if imported_packages(path) & {"tests", "benchmarks", "scripts"}]
    assert importers == []
