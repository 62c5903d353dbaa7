"""Classes and functions by import path, `module:QualName`: how a stored task names its code.

A path is only given for what another process can import, and only what a path leads to is ever called from a stored task.
"""

from __future__ import annotations

import functools
import importlib
import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from rayzyme.errors import NotFound

_OWN = "rayzyme"


class NotImportable(ValueError):
    """No other process could import it; the message says why."""


def import_path(thing: Any) -> str:
    """The path of a class or function.

    Raises:
        NotImportable: It is a lambda, defined inside a function or in the program itself, or its name means something else.
    """
    path = plain_path(thing)
    module, _, name = path.partition(":")
    if module == "__main__":
        raise NotImportable(f"{name} is defined in the program itself (__main__); put it into a module of its own")
    if "<" in name:
        raise NotImportable(f"{name} is a lambda or defined inside a function; define it at the top of a module")
    if module not in sys.modules or _attribute(sys.modules[module], name) is not thing:
        raise NotImportable(f"{module} has something else under the name {name}, or nothing")
    search_path(module)
    return path


def plain_path(thing: Any) -> str:
    """`module:QualName` as the thing itself says, importable or not.

    Raises:
        NotImportable: It has no name, as objects and partial functions have none.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise NotImportable(f"{thing!r} has no name that it could be imported by")
    return f"{module}:{name}"


@functools.lru_cache(maxsize=1024)
def search_path(module: str) -> str | None:
    """The entry of `sys.path` under which an imported module lies; None where every process of this installation has it.

    Raises:
        NotImportable: The module lies in no file of its name.
    """
    parts = module.split(".")
    spec = getattr(sys.modules[module], "__spec__", None)
    if parts[0].partition("_")[0] == _OWN or (spec is not None and spec.origin in ("built-in", "frozen")):
        return None
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        raise NotImportable(f"module {module} lies in no file")
    place = Path(file).absolute()
    place = place.parent if place.stem == "__init__" else place.with_name(place.name.partition(".")[0])
    if place.parts[-len(parts) :] != tuple(parts):
        raise NotImportable(f"module {module} lies in {file}, where no import finds it under that name")
    root = str(place.parents[len(parts) - 1])
    return None if root in _installed() else root


def load(path: str, search: str | None = None) -> Any:
    """What a path leads to.

    Args:
        path: Of `import_path`.
        search: Entry of `sys.path` that is added where the import needs it.

    Raises:
        NotFound: Nothing is there, or another module of that name is; the message names the path.
    """
    name, _, attribute = path.partition(":")
    module = _imported(name, search)
    found = _attribute(module, attribute)
    if found is None:
        raise NotFound(f"{path} cannot be loaded: module {name} ({_file(module)}) has no {attribute}")
    return found


def _imported(name: str, search: str | None) -> ModuleType:
    top = name.partition(".")[0]
    was_there = top in sys.modules
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        is_itself_missing = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        if not is_itself_missing or search is None or search in sys.path:
            raise NotFound(f"module {name} cannot be imported in {sys.executable}: {error}") from error
        # First, as it most likely was in the program that submitted; a package of that name from elsewhere gives way.
        sys.path.insert(0, search)
        importlib.invalidate_caches()
        if not was_there:
            sys.modules.pop(top, None)
        return _imported(name, search)
    if search is None:
        return module
    file = _file(module)
    if not Path(file).is_relative_to(search):
        raise NotFound(
            f"module {name} is {file} in this process, and not the one of the task under {search}; rename one"
        )
    return _as_it_is_now(module, file)


_changed: dict[str, int] = {}


def _as_it_is_now(module: ModuleType, file: str) -> ModuleType:
    """Processes outlive jobs: what its user edited since it was imported is imported again."""
    try:
        changed = Path(file).stat().st_mtime_ns
    except OSError:
        return module
    if _changed.setdefault(module.__name__, changed) != changed:
        _changed[module.__name__] = changed
        importlib.reload(module)
    return module


def _attribute(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _file(module: ModuleType) -> str:
    return str(Path(getattr(module, "__file__", None) or "built-in").absolute())


@functools.lru_cache(maxsize=1)
def _installed() -> frozenset[str]:
    paths = sysconfig.get_paths()
    own = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return frozenset([*own, *site.getsitepackages(), site.getusersitepackages()])
