"""What a batcher runs: tells the kinds of function apart, and finds what belongs to each.

Whether a function runs on the loop or on threads, and what its answer is, is read from its definition once,
when the batcher is made; nothing is found out by calling it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

_STEP_METHODS = ("add", "step", "remove", "capacity")


class Kind(enum.Enum):
    """What comes of a batch."""

    FUNCTION = "a function"
    """Results, one for each item."""
    STREAM = "a streaming function"
    """A stream for each item."""
    STEPS = "a step engine"
    """A stream for each item, made in steps that items join and leave."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hooks:
    """What one worker runs."""

    run: Any
    """The function, or the step engine."""
    on_start: Callable[[], Any] | None
    warmup: Callable[[], Any] | None
    on_stop: Callable[[], Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a batcher runs.

    Attributes:
        kind: what comes of a batch.
        on_loop: whether it runs on the loop; else on threads.
        name: what to call it.
        is_class: whether it is a class, of which each worker's thread, or the loop, makes an instance.
        make: makes what a worker runs, where it runs.
    """

    kind: Kind
    on_loop: bool
    name: str
    is_class: bool
    make: Callable[[], Hooks]


def work_of(
    function: Any,
    on_start: Callable[[], Any] | None = None,
    warmup: Callable[[], Any] | None = None,
    on_stop: Callable[[], Any] | None = None,
) -> Work:
    """What this function, object or class is to a batcher.

    Raises:
        TypeError: it is none of them, or does not take a batch, or is synchronous and has hooks that are not.
    """
    is_class = inspect.isclass(function)
    kind, entry = _entry(function)
    on_loop = inspect.iscoroutinefunction(entry) or inspect.isasyncgenfunction(entry)
    if kind is not Kind.STEPS and (inspect.isasyncgenfunction(entry) or inspect.isgeneratorfunction(entry)):
        kind = Kind.STREAM
    elif kind is Kind.STEPS and (inspect.isasyncgenfunction(entry) or inspect.isgeneratorfunction(entry)):
        raise TypeError(f"{function!r}: step must return a list, not yield")
    given = Hooks(None, on_start, warmup, on_stop)
    _check_hooks(function, given, on_loop)

    def make() -> Hooks:
        instance = function() if is_class else function
        return Hooks(
            _runnable(instance, kind),
            *(_hook(instance, given, name) for name in ("on_start", "warmup", "on_stop")),
        )

    return Work(kind, on_loop, _name(function), is_class, make)


def _entry(function: Any) -> tuple[Kind, Any]:
    """What decides how it runs: the function, or the method of an object or class that is called."""
    if _is_step_engine(function):
        missing = [name for name in _STEP_METHODS if not callable(getattr(function, name, None))]
        if missing:
            raise TypeError(f"{function!r} has step, but no {' and no '.join(missing)}")
        return Kind.STEPS, function.step
    process = getattr(function, "process", None)
    if callable(process) and not inspect.isfunction(function):
        _check_takes_batch(function, process, bound=not inspect.isclass(function))
        return Kind.FUNCTION, _unwrapped(process)
    if inspect.isclass(function):
        call = function.__call__ if "__call__" in dir(function) else None
        if not inspect.isfunction(call):
            raise TypeError(f"{function!r} has neither a process method nor __call__")
        _check_takes_batch(function, call, bound=False)
        return Kind.FUNCTION, call
    if not callable(function):
        raise TypeError(
            f"{function!r} is nothing to batch for: give a function of a batch, or an object or class with a "
            "process method, or with add, step, remove and capacity"
        )
    _check_takes_batch(function, function, bound=True)
    return Kind.FUNCTION, _unwrapped(function)


def _is_step_engine(function: Any) -> bool:
    return (
        not inspect.isfunction(function)
        and callable(getattr(function, "step", None))
        and hasattr(function, "add")
    )


def _check_takes_batch(given: Any, function: Any, *, bound: bool) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(*(("batch",) if bound else ("self", "batch")))
    except TypeError:
        raise TypeError(f"{given!r} must take one argument, the batch, not {signature}") from None


def _unwrapped(function: Any) -> Any:
    """The function within partials and bound objects, whose kind decides."""
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    return getattr(function, "__call__", function)  # noqa: B004


def _check_hooks(function: Any, given: Hooks, on_loop: bool) -> None:
    for name in ("on_start", "warmup", "on_stop"):
        hook = _hook(function, given, name)
        if hook is None:
            continue
        if not callable(hook):
            raise TypeError(f"{name} must be a function without arguments, not {hook!r}")
        if not on_loop and inspect.iscoroutinefunction(hook):
            raise TypeError(f"{name} is asynchronous, and the function is not: both run on the same thread")


def _hook(instance: Any, given: Hooks, name: str) -> Any:
    """What is given, or else the object's own; a function's attributes are its own affair."""
    hook = getattr(given, name)
    if hook is not None or inspect.isfunction(instance) or inspect.ismethod(instance):
        return hook
    return getattr(instance, name, None)


def _runnable(instance: Any, kind: Kind) -> Any:
    if kind is Kind.STEPS or inspect.isfunction(instance):
        return instance
    process = getattr(instance, "process", None)
    return process if callable(process) else instance


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "batcher" if name == "<lambda>" else cast("str", name)


def run_hook(hook: Callable[[], Any] | None) -> Any:
    """Call a hook, if there is one."""
    return None if hook is None else hook()
