"""The families of metrics as the core declares them, and what an expression of PromQL uses of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ROOT / "rust" / "core" / "src" / "metrics" / "names.rs"

AMBIENT = {"job", "instance", "worker_process"}
"""Labels that a family does not declare: Prometheus adds them, or the parent of worker processes."""

_DECLARED = re.compile(
    r'= "(headrace_\w+)",\s*(\w+),\s*\w+,\s*\[([^\]]*)\],\s*"((?:[^"\\]|\\.)*)";', re.DOTALL
)
# The function whose parenthesis stands right before it, the name, matchers, the range.
_SELECTED = re.compile(r"(?:(\w+)\()?\b(headrace_\w+)(?:\{([^}]*)\})?(\[[^\]]+\])?")
_GROUPED = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)\s*(?=(\()?)")


@dataclass(frozen=True)
class Family:
    """One family: ``kind`` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def families() -> dict[str, Family]:
    """All that the core declares, by name, in its order."""
    found: dict[str, Family] = {}
    for name, kind, labels, text in _DECLARED.findall(NAMES.read_text()):
        joined = re.sub(r"\\\n\s*", "", text)
        found[name] = Family(name, kind.lower(), tuple(re.findall(r'"(\w+)"', labels)), joined)
    assert len(found) == NAMES.read_text().count('= "headrace_'), "a declaration was not understood"
    return found


@dataclass(frozen=True)
class Use:
    """A family where an expression selects it: ``suffix`` is ``_bucket``, ``_sum``, ``_count`` or empty."""

    family: Family
    suffix: str
    function: str
    matchers: tuple[tuple[str, str], ...]
    has_range: bool
    at: int

    @property
    def labels(self) -> set[str]:
        """Labels that its series have."""
        return {*self.family.labels, *AMBIENT, *(["le"] if self.suffix == "_bucket" else [])}


def uses(expression: str, known: dict[str, Family]) -> list[Use]:
    """What an expression selects. A name that is not declared is an AssertionError."""
    found: list[Use] = []
    for match in _SELECTED.finditer(expression):
        function, name, matchers, within = match.groups()
        stem, suffix = name, ""
        if name not in known:
            stem, mark, rest = name.rpartition("_")
            suffix = mark + rest
            assert stem in known and suffix in ("_bucket", "_sum", "_count"), f"there is no {name}"
        pairs = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers or "")
        found.append(
            Use(known[stem], suffix, function or "", tuple(pairs), within is not None, match.start(2))
        )
    return found


def problems(expression: str, known: dict[str, Family]) -> list[str]:
    """What is wrong with how an expression uses the families."""
    used = uses(expression, known)
    wrong: list[str] = []
    for use in used:
        name = use.family.name + use.suffix
        if (use.family.kind == "histogram") != bool(use.suffix):
            wrong.append(f"{name} is a {use.family.kind}")
        rises = use.family.kind != "gauge"
        if rises != (use.function in ("rate", "increase")) or (rises and not use.has_range):
            wrong.append(f"{name}, a {use.family.kind}, under {use.function or 'no function'}")
        wrong += [f"{name} has no label {label}" for label, _ in use.matchers if label not in use.labels]
    for match in _GROUPED.finditer(expression):
        word, labels = match[1], set(re.findall(r"\w+", match[2]))
        inside = used
        if word in ("by", "without") and match[3]:
            end = _closing(expression, match.end())
            inside = [use for use in used if match.end() < use.at < end]
        for use in inside:
            if word in ("by", "without"):
                wrong += [f"{use.family.name} has no label {label}" for label in labels - use.labels]
        anywhere = set[str]().union(*(use.labels for use in used)) if used else labels
        wrong += [f"nothing has the label {label}" for label in labels - anywhere]
    return wrong


def _closing(expression: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[at], 0)
        if depth == 0:
            return at
    raise AssertionError(f"parentheses do not match: {expression}")
