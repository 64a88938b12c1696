"""Modules and functions stay small enough to be read in one go."""

from __future__ import annotations

from tests.architecture.sources import functions, modules, name_of

PACKAGES = ("simct_pl", "callbacks")
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 40

# name → why it is better long. Keep this short: an entry is a debt, and one that is not needed any more fails below.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def test_modules_are_at_most_300_lines() -> None:
    sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules(*PACKAGES)}
    too_long = {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES}
    assert too_long.keys() == LONG_MODULES.keys(), f"modules over {MAX_MODULE_LINES} lines: {too_long}"


def test_functions_are_at_most_40_lines_of_code() -> None:
    sizes = dict(entry for path in modules(*PACKAGES) for entry in functions(path))
    assert len(sizes) > 50, "the walk over the tree found hardly any function"
    too_long = {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES}
    assert too_long.keys() == LONG_FUNCTIONS.keys(), f"functions over {MAX_FUNCTION_LINES} lines of code: {too_long}"
