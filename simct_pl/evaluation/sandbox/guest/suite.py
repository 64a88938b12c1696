"""A suite of tests before it runs: sources in; what makes it ungradable, and whose each name in it is, out.

A name that the tests use and do not bind is the code's under test, but for modules that a test forgot to import. The
analysis asks for rather too many names than too few: one that the code does not have is left out.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import symtable
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import ModuleType

from . import SOLUTION

CHECKS = (ast.Assert, ast.Raise, ast.Call)


def why_ungradable(setup: str, tests: Sequence[str]) -> str | None:
    """Why no code whatever could be told right from wrong by these tests; None if it can."""
    trees = []
    for source in (setup, *tests):
        try:
            trees.append(ast.parse(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"a test or the set-up is no Python ({type(error).__name__}: {error})"[:500]
    if not any(map(checks_something, trees[1:])):
        return "there is no test, or none that checks anything"
    missing = sorted({name for tree in trees for name in _modules_of(tree) if not _is_there(name)})
    return f"the tests import {', '.join(missing)}, which the sandbox does not have" if missing else None


def checks_something(tree: ast.AST) -> bool:
    """Whether there is anything in it that code could fail at."""
    return any(isinstance(node, CHECKS) for node in ast.walk(tree))


def free_names(*sources: str) -> list[str]:
    """Names that sources, run one after the other, use and neither define, import nor find among the built-ins."""
    used: set[str] = set()
    bound: set[str] = set()
    before_bound: set[str] = set()  # x = x(): what is on the right is no name of the tests yet
    for source in sources:
        before_bound |= _used_while_bound(ast.parse(source)) - bound
        table = symtable.symtable(source, "tests", "exec")
        for scope in _scopes(table):
            for symbol in scope.get_symbols():
                if scope is table or symbol.is_global():
                    used |= {symbol.get_name()} if symbol.is_referenced() else set()
                    bound |= {symbol.get_name()} if symbol.is_assigned() or symbol.is_imported() else set()
    return sorted((used - bound | before_bound) - set(dir(builtins)))


def modules_meant(*sources: str) -> dict[str, ModuleType]:
    """Of the standard library's modules, those that sources only use as modules: by attributes that they have."""
    attributes: dict[str, set[str]] = defaultdict(set)
    as_values: set[str] = set()
    for source in sources:
        # A name that stands alone is the node's child elsewhere than below an attribute.
        for node in ast.walk(ast.parse(source)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Name) and isinstance(node, ast.Attribute):
                    attributes[child.id].add(node.attr)
                elif isinstance(child, ast.Name):
                    as_values.add(child.id)
    found = {}
    for name in sorted(attributes.keys() - as_values):
        if name in sys.stdlib_module_names:
            module = importlib.import_module(name)
            if all(hasattr(module, attribute) for attribute in attributes[name]):
                found[name] = module
    return found


def _scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def _used_while_bound(tree: ast.Module) -> set[str]:
    """Names that an assignment reads and binds, and that nothing in front of it has bound."""
    found: set[str] = set()
    seen: set[str] = set()
    for statement in tree.body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            found |= {node.id for node in names if isinstance(node.ctx, ast.Load) and node.id in stored - seen}
        seen |= stored
    return found


def _modules_of(tree: ast.Module) -> Iterator[str]:
    """What must be there to be imported: not what stands in a function, or in a `try`."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def _is_there(module: str) -> bool:
    return module == SOLUTION or module in sys.modules or importlib.util.find_spec(module) is not None
