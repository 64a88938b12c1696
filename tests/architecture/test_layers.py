"""Rooms in layers: each imports only from the layers below its own, so that the architecture can be read off a list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.sources import ROOT, modules, name_of, tree_of

# From the bottom up. A room is a folder of simct_pl, or a module that lies loose in it; rooms of one line are
# independent of each other.
LAYERS = (
    ("errors", "seeding", "progress"),
    ("types",),
    ("files",),
    ("tracking",),
    ("checkpointing",),
    ("tokenization",),
    ("alignment", "data"),
    ("models",),
    ("losses",),
    ("rollout",),
    ("evaluation",),
    ("training",),
    ("tasks", "warmup", "rehearsal"),
    ("config",),
    ("planning",),
    ("preflight", "lab"),
    ("commands",),
)
# What may lie loose in simct_pl/: the public names, the entry point, and what every room uses.
MOST_LOOSE_MODULES = 14
# Rooms with rooms of their own, from the bottom up as well; what lies loose in the room is above them all, except for
# the modules that are named.
INNER_LAYERS = {
    "losses": ("parcel", "token_paths", "inputs"),
    "evaluation": ("grader", "boxed", "sandbox", "maths", "benchmark", "code_benchmark", "benchmarks"),
}


def room_of(module: str) -> str:
    """`simct_pl.training.teacher` → `training`; the package itself → "" (it loads what it names when asked)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports, also inside functions and for types alone."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in {"simct_pl", "callbacks"})
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module.split(".")[0] not in {"simct_pl", "callbacks"}:
                continue
            for alias in node.names:
                inner = (ROOT / node.module.replace(".", "/") / alias.name).with_suffix(".py")
                yield f"{node.module}.{alias.name}" if inner.is_file() else node.module


def edges() -> list[tuple[Path, str]]:
    return [(path, target) for path in modules("simct_pl") for target in imports(path)]


LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def test_every_room_is_in_the_list() -> None:
    rooms = {room_of(module_of(path)) for path in modules("simct_pl")} - {"", "__main__"}
    assert rooms == LEVEL.keys(), "a room is missing in LAYERS, or is gone"


def test_no_room_imports_one_beside_or_above_it() -> None:
    upward = []
    for path, target in edges():
        here, there = room_of(module_of(path)), room_of(target)
        if here in {"", "__main__"} or here == there:
            continue
        if there == "" or LEVEL[there] >= LEVEL[here]:
            upward.append(f"{name_of(path)} imports {target}")
    assert upward == []


def test_the_package_imports_no_callback() -> None:
    assert [name_of(path) for path, target in edges() if target.split(".")[0] == "callbacks"] == []


def test_inner_rooms_are_in_layers_too() -> None:
    upward = []
    for path, target in edges():
        here, there = module_of(path).split(".")[1:], target.split(".")[1:]
        if not here or not there or here[0] != there[0] or here[0] not in INNER_LAYERS:
            continue
        inner = INNER_LAYERS[here[0]]
        level_here, level_there = (
            inner.index(m[1]) if len(m) > 1 and m[1] in inner else len(inner) for m in (here, there)
        )
        if level_there > level_here:
            upward.append(f"{name_of(path)} imports {target}")
    assert upward == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path, target in edges():
        graph.setdefault(module_of(path), set()).add(target)
    graph.pop("simct_pl", None)  # loads its public names when they are first used
    settled: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in settled:
            for target in sorted(graph.get(module, ())):
                visit(target, (*trail, module))
            settled.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_few_modules_lie_loose() -> None:
    loose = [path for path in modules("simct_pl") if path.parent == ROOT / "simct_pl"]
    assert 0 < len(loose) <= MOST_LOOSE_MODULES
