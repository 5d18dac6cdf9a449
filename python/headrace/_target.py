"""Engines by name, ``"module:engine"``: what the command line serves."""

from __future__ import annotations

import importlib
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
