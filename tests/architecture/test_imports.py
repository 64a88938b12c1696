"""Who may import whom, and what an import must not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT, imported_packages, modules, name_of

VLLM_MODULES = {"simct_pl/rollout/vllm.py", "simct_pl/rollout/vllm_nccl.py"}
HEAVY = ("torch", "lightning", "vllm", "transformers", "mlflow")


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("module", ["simct_pl", "simct_pl.errors", "simct_pl.commands.main"])
def test_the_front_doors_import_nothing_heavy(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


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


def test_the_library_never_imports_tests_or_benchmarks() -> None:
    paths = modules("simct_pl", "callbacks")
    importers = [name_of(path) for path in paths if imported_packages(path) & {"tests", "benchmarks", "scripts"}]
    assert importers == []
