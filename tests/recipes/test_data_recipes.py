"""Recipes of `data`, `generate` and `select`: each is read by its command, and the paper's mixture has its counts."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import simct_pl.data.build
import simct_pl.warmup.generate
import simct_pl.warmup.select
from simct_pl.commands.main import main
from simct_pl.config.recipes import recipe_folder
from simct_pl.data.mixture import MixtureSource
from simct_pl.data.source import PromptSource
from simct_pl.evaluation.grader import Grader
from simct_pl.rollout.engine import SamplingParams

COMMAND = re.compile(r"python -m simct_pl (data|generate|select) --recipe (\S+)")
RECIPES = [
    path
    for folder in ("data", "warmup")
    for path in sorted((recipe_folder() / folder).glob("*.yaml"))
    if COMMAND.search(path.read_text(encoding="utf-8"))
]
FUNCTIONS = {
    "data": (simct_pl.data.build, "build_mixture"),
    "generate": (simct_pl.warmup.generate, "generate"),
    "select": (simct_pl.warmup.select, "select"),
}


def options(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command of a recipe's header would call its function with."""
    match = COMMAND.search(recipe.read_text(encoding="utf-8"))
    assert match is not None
    command, name = match.groups()
    assert name == recipe.relative_to(recipe_folder()).with_suffix("").as_posix()
    module, function = FUNCTIONS[command]
    found: list[dict[str, Any]] = []
    original = getattr(module, function)

    class Stop(Exception):
        pass

    def note(**values: Any) -> None:
        found.append(values)
        raise Stop

    note.__signature__ = inspect.signature(original, eval_str=True)  # type: ignore[attr-defined]
    note.__doc__ = original.__doc__
    monkeypatch.setattr(module, function, note)
    with pytest.raises(Stop):
        main([command, "--recipe", name])
    return found[0]


def test_there_are_recipes_to_test() -> None:
    assert {path.stem for path in RECIPES} >= {
        "arithmetic",
        "mixture_10k",
        "arithmetic_generate",
        "arithmetic_select",
        "generate",
        "select",
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_by_its_command(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(recipe, monkeypatch)
    assert found["output"].startswith("runs/")
    if "sources" in found:
        assert all(isinstance(source, MixtureSource) for source in found["sources"].values())
        assert all(isinstance(source, PromptSource) for source in found["test_prompts"].values())
    elif "graders" in found:
        assert all(isinstance(grader, Grader) for grader in found["graders"].values())
    else:
        assert isinstance(found["sampling"], SamplingParams)
        assert isinstance(found["prompts"], PromptSource)


def test_the_papers_mixture_has_its_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """arXiv 2605.07711: 5,800 of maths and 4,200 of code."""
    sources = options(recipe_folder() / "data/mixture_10k.yaml", monkeypatch)["sources"]
    counts = {name: source.count for name, source in sources.items()}
    assert counts == {
        "gsm8k": 1800,
        "math": 800,
        "orca_math": 2200,
        "openmathinstruct": 1000,
        "opencodeinstruct": 1800,
        "kodcode": 900,
        "taco": 900,
        "code_contests": 600,
    }
    maths = sum(source.count for source in sources.values() if source.domain.startswith("maths"))
    assert (maths, sum(counts.values())) == (5800, 10_000)


def test_answers_stand_behind_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`#### 7`, as GSM8K writes them: a pattern that begins with `#` is no comment."""
    rows = options(recipe_folder() / "data/mixture_10k.yaml", monkeypatch)["sources"]["gsm8k"].rows
    assert rows.answer_pattern == r"####\s*(.+)"
    rows = options(recipe_folder() / "data/arithmetic.yaml", monkeypatch)["sources"]["additions"].rows
    prompts = [rows.prompt(index, row) for index, row in rows.rows()]
    assert prompts
    for prompt in prompts:
        assert sum(int(term) for term in re.findall(r"\d+", prompt.messages[0]["content"])) == int(prompt.answer or "")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"So it is $\boxed{3}$.", "3"),
        (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{x^{2^{3}}} as \fbox{4}", "x^{2^{3}}"),
    ],
)
def test_the_answer_of_math_is_in_its_last_box(answer: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = options(recipe_folder() / "data/mixture_10k.yaml", monkeypatch)["sources"]
    match = re.search(sources["math"].rows.answer_pattern, answer)
    assert match is not None
    assert match.group(1) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("He has 3 + 4 = 7 apples.", "7"),
        ("It costs $1,250.50.", "1,250.50"),
        ("x = -12", "-12"),
        ("5", "5"),
        ("7-12", "12"),
    ],
)
def test_the_answer_of_a_worked_solution_is_its_last_number(
    answer: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = options(recipe_folder() / "data/mixture_10k.yaml", monkeypatch)["sources"]
    match = re.search(sources["orca_math"].rows.answer_pattern, answer)
    assert match is not None
    assert match.group(1) == expected
