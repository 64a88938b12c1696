"""The table of docs/recipes.md: every shipped recipe, its command and the first sentence of its header.

python scripts/list_recipes.py --write true
"""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import jsonargparse

from simct_pl.config.recipes import recipe_folder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- begin recipes -->", "<!-- end recipes -->"
COMMAND = re.compile(r"python -m simct_pl (\w+)((?: --recipe \S+)+)")


def recipe_table() -> str:
    """One Markdown row a recipe."""
    paths = sorted(recipe_folder().rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    rows = [f"| {' | '.join(_cells(path))} |" for path in paths]
    return "\n".join(["| recipe | what it is | runs by |", "|---|---|---|", *rows])


def _cells(path: Path) -> tuple[str, str, str]:
    """Name, first sentence and shortest command of a recipe."""
    lines = [
        line.removeprefix("#").strip()
        for line in takewhile(lambda s: s.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    ]
    words = " ".join(takewhile(lambda line: line and "python -m" not in line, lines))
    sentence = re.split(r"(?<=\.)\s(?=[A-Z])", words, maxsplit=1)[0].rstrip(".")
    found = COMMAND.search("\n".join(lines))
    assert found is not None, f"{path}: the header holds no command"
    name = path.relative_to(recipe_folder()).with_suffix("").as_posix()
    recipes = re.sub(r"--recipe (?:recipes/)?(\S+?)(?:\.yaml)?(?=\s|$)", r"\1", found[2]).split()
    return f"`{name}`", sentence, f"`{found[1]}` {' + '.join(f'`{recipe}`' for recipe in recipes)}"


def with_table(page: str) -> str:
    """The page with the table of today between its markers."""
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{recipe_table()}\n{END}{rest.split(END, 1)[1]}"


def main(write: bool = False) -> None:
    """Print the table.

    Args:
        write: put it into docs/recipes.md.
    """
    print(recipe_table())
    if write:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
