"""Engines by name, ``"module:engine"``: what the command line and worker processes serve. A process imports
what it is to serve; no engine is ever pickled.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, cast


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why."""


def load(name: str) -> Any:
    """The object that ``"module:attribute"`` names.

    Raises:
        UsageError: there is no such module or attribute.
        Exception: whatever the module raises while it is imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{name!r} does not name an engine: write module:engine")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise UsageError(f"there is no module {error.name!r} here or on sys.path") from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"module {module_name!r} has no {attribute!r}") from None
    return found


def loaded(engine: Any) -> Any:
    """An engine, or a dictionary of them, with each name replaced by what it names.

    Raises:
        UsageError: as :func:`load`.
    """
    if isinstance(engine, str):
        return load(engine)
    if isinstance(engine, Mapping):
        engines = cast("Mapping[Any, Any]", engine)
        return {str(key): load(each) if isinstance(each, str) else each for key, each in engines.items()}
    return engine


def named(engine: Any) -> str | dict[str, str]:
    """An engine, or a dictionary of them, with each replaced by its name; nothing is imported.

    Raises:
        UsageError: an engine cannot be imported by a name.
    """
    if isinstance(engine, Mapping):
        engines = cast("Mapping[Any, Any]", engine)
        return {str(key): _engine_name(each) for key, each in engines.items()}
    return _engine_name(engine)


def _engine_name(engine: Any) -> str:
    if isinstance(engine, str):
        return engine
    name = name_of(engine)
    if name is None:
        raise UsageError(
            f"{engine!r} cannot be served by worker processes: each imports its engine, and no import finds "
            'this one. Put it into a module and pass "module:engine"'
        )
    return name


def name_of(thing: Any) -> str | None:
    """The ``"module:attribute"`` under which another process finds a function or class; ``None`` if under
    none, as what is defined in ``__main__`` or inside a function.
    """
    module_name = getattr(thing, "__module__", None)
    attribute = getattr(thing, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(attribute, str) or module_name == "__main__":
        return None
    found: Any = sys.modules.get(module_name)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return f"{module_name}:{attribute}" if found is thing else None
