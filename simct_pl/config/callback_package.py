"""`callbacks.X` in a recipe: this project's callbacks, and beside them what else is called `callbacks`.

In: ours, and every folder or file of that name on sys.path and in the working directory. Out: one package that looks
into ours first, and into theirs for what ours does not have. Python alone takes whichever comes first and hides the
rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from typing_extensions import override

from simct_pl.config.recipes import PACKAGE

NAME = "callbacks"
_places: list[Path] = []  # where theirs may be; as of `install`, because a recipe is parsed in its own folder
_theirs: dict[Path, ModuleType] = {}  # what a file of theirs defines, by file


def own_folder() -> Path:
    """Where ours are: a copy inside the package in a wheel, since another distribution may have overwritten the
    top-level folder; beside the package in a checkout.
    """
    bundled = PACKAGE / f"_{NAME}"
    return bundled if bundled.is_dir() else PACKAGE.parent / NAME


def install() -> None:
    """From now on, in this process and its forks, `callbacks` is ours with theirs beside it.

    Call it before a recipe is read. If theirs was imported already, that name is given to ours; what holds the old
    module keeps it.
    """
    # In place: finder and modules that are installed already see the new places.
    _places[:] = _importable_places()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    loaded = {name: module for name, module in sys.modules.items() if name == NAME or name.startswith(f"{NAME}.")}
    # Theirs came first: forget it, and the next import finds ours.
    if loaded and not _is_ours(loaded.get(NAME)):
        for name in loaded:
            del sys.modules[name]
        return
    # Ours was imported without the finder: give it what the finder would have given.
    for name, module in loaded.items():
        if name == NAME:
            module.__path__ = _search_path()
        if name == NAME or _own_file(name) is not None:
            _look_further(module)


class _Finder(MetaPathFinder):
    """Finds `callbacks` and the modules of ours in it; those that only they have, Python finds by the search path."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = _own_file(fullname)
        if file is None:
            return None
        locations = _search_path() if fullname == NAME else None
        loader = _OwnLoader(fullname, str(file))
        return spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=locations)


class _OwnLoader(SourceFileLoader):
    @override
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _look_further(module)


def _look_further(module: ModuleType) -> None:
    module.__getattr__ = partial(_from_theirs, module.__name__)  # type: ignore[method-assign]


def _from_theirs(module: str, attribute: str) -> Any:
    """What ours does not define, from their file of the same name."""
    # Dunder names are asked of every module by Python itself, and are never meant for theirs.
    for file in () if attribute.startswith("__") else _their_files(module):
        value = vars(_load(module, file)).get(attribute)
        if value is not None:
            return value
    raise AttributeError(f"module {module!r} has no attribute {attribute!r}")


def _load(name: str, file: Path) -> ModuleType:
    """Run a file of theirs under the name that it has for Python, so that its classes are found by `name.Class`."""
    if file not in _theirs:
        module = ModuleType(name)
        module.__file__, module.__package__ = str(file), NAME
        _theirs[file] = module  # before it runs: it may import ours, which may look here
        try:
            exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
        except BaseException:
            del _theirs[file]
            raise
    return _theirs[file]


def _own_file(name: str) -> Path | None:
    """Our file of `callbacks` or `callbacks.x`; None if we have none."""
    package, _, rest = name.partition(".")
    if package != NAME or "." in rest:
        return None
    file = own_folder() / f"{rest or '__init__'}.py"
    return file if file.is_file() else None


def _their_files(name: str) -> Iterator[Path]:
    """Theirs of the same name, in the order of sys.path."""
    own = _own_file(name)
    for place in _places:
        base = place.joinpath(*name.split("."))
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file() and (own is None or not file.samefile(own)):
                yield file.resolve()


def _search_path() -> list[str]:
    theirs = [place / NAME for place in _places if (place / NAME).is_dir()]
    return [str(own_folder()), *(str(folder) for folder in theirs if not folder.samefile(own_folder()))]


def _importable_places() -> list[Path]:
    """Where Python looks for packages; and the working directory, which a console script leaves out. Not where another
    copy of this project lies, whose callbacks are nobody's own.
    """
    places = [Path(entry).absolute() for entry in dict.fromkeys([*sys.path, "."])]
    copies = [place / PACKAGE.name / "__init__.py" for place in places]
    return [
        place
        for place, copy in zip(places, copies, strict=True)
        if not copy.is_file() or copy.samefile(PACKAGE / "__init__.py")
    ]


def _is_ours(module: ModuleType | None) -> bool:
    """Whether it is ours or a copy of ours, such as the top-level one of a wheel."""
    file = Path(getattr(module, "__file__", None) or "")
    return file.is_file() and file.read_bytes() == (own_folder() / "__init__.py").read_bytes()
