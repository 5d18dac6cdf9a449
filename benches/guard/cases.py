"""The cases: what is counted, over how many items, and how much a figure may rise.

Nothing here depends on time, so a tolerance is not for noise of the machine. It leaves room for what a
compiler does differently with code that has not changed. Counted five times, the Rust cases differ by
nothing, the Python ones by at most 0.3 %: the kernel decides how tokio's thread and the loop's take turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """One hot loop: counted over `count` items and over twice as many."""

    name: str
    what: str
    count: int
    is_python: bool = False
    tolerance: float = TOLERANCE


CASES = (
    Case("wire-encode", "item put into the outbound buffer, written 64 at a time", 65_536),
    Case("wire-decode", "DATA frame of one item, decoded and taken", 65_536),
    Case("wire-decode-bursts", "item out of DATA frames of 64", 65_536),
    Case("wire-calls", "call's frames: REQUEST, and the answer's", 8_192),
    Case("link-stream", "item of a stream, both ends and their socket", 65_536),
    Case("link-calls", "unary call, both ends and their socket", 4_096),
    Case("stream-dicts", "dictionary that an engine yields and a caller reads", 8_192, is_python=True),
    Case("stream-bytes", "the same with bytes", 16_384, is_python=True),
    Case("unread", "the same, not read: the engine's side", 16_000, is_python=True),
    Case("requests", "bytes that a caller's generator yields and an engine reads", 16_384, is_python=True),
    Case("calls", "unary call, one after the other", 2_048, is_python=True),
    Case("calls-together", "unary call, 64 in flight", 2_048, is_python=True),
)

TOLERANCES: Mapping[str, float] = {case.name: case.tolerance for case in CASES}
