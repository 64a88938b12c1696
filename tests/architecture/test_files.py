"""What every file must say, and must not."""

from __future__ import annotations

import ast
import re

from tests.architecture.sources import ROOT, header_of, modules, name_of, project_files, tree_of

# Where somebody's checkout happened to lie. The image's own user is the one exception.
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|Users|home/(?!simct\b)\w+)/")


def test_every_public_module_opens_with_a_docstring() -> None:
    silent = []
    for path in modules("simct_pl", "callbacks"):
        tree = tree_of(path)
        is_public = path.name in {"__init__.py", "__main__.py"} or not path.name.startswith("_")
        if is_public and tree.body and not ast.get_docstring(tree):
            silent.append(name_of(path))
    assert silent == []


def test_no_file_names_a_path_of_one_machine() -> None:
    files = project_files()
    assert len(files) > 50
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture or a checkpoint
            continue
        found += [f"{name_of(path)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


def test_every_recipe_opens_with_the_command_that_runs_it() -> None:
    recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert len(recipes) > 0, "recipes/ has no recipe"
    assert list((ROOT / "recipes").rglob("*.yml")) == [], "recipes end in .yaml"
    silent = []
    for path in recipes:
        header = header_of(path)
        shipped_name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        names_itself = re.search(rf"--recipe ({re.escape(name_of(path))}|{re.escape(shipped_name)})(?![\w/.-])", header)
        if "python -m simct_pl" not in header or names_itself is None:
            silent.append(name_of(path))
    assert silent == [], "the header must hold the command, `python -m simct_pl … --recipe` and the recipe's own name"
