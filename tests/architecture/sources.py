"""The tree as syntax, for the tests beside it."""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(*packages: str) -> list[Path]:
    """Return every Python file of the packages, sorted; at least one each."""
    found = [sorted((ROOT / package).rglob("*.py")) for package in packages]
    assert all(found), f"no Python file in one of {packages}"
    return [path for paths in found for path in paths]


def name_of(path: Path) -> str:
    """Return the path as it is written in messages and lists of exceptions."""
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere, inside functions and type checks too."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (qualified name, lines of code) of every function: no blank lines, comments or docstrings."""
    with tokenize.open(path) as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in NOT_CODE]
    code_lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for name, function in named_functions(tree_of(path), ()):
        lines = code_lines & set(range(function.lineno, (function.end_lineno or function.lineno) + 1))
        for node in ast.walk(function):
            if isinstance(node, Function | ast.ClassDef) and ast.get_docstring(node) is not None:
                lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        yield f"{name_of(path)}::{name}", len(lines)


def named_functions(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, Function]]:
    """Yield every function below a node with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            inner = (*scope, child.name)
            if isinstance(child, Function):
                yield ".".join(inner), child
            yield from named_functions(child, inner)
        else:
            yield from named_functions(child, scope)


def project_files() -> list[Path]:
    """Return the files that are, or with the next commit would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def header_of(path: Path) -> str:
    """Return the comment lines that a YAML file opens with."""
    match = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    return match.group() if match else ""
