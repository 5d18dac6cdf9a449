"""Items that show whether one is missing, doubled, out of order or changed: each carries its number and a
checksum over all before it. Engines and readers of the tests for faults use the same class.
"""

from __future__ import annotations

import zlib
from typing import Any


class Sequence:
    """The items of one stream so far, the same at both ends."""

    def __init__(self) -> None:
        self.items = 0
        self.sum = 0

    def next(self, size: int) -> dict[str, Any]:
        """The next item, with so many bytes beside number and checksum."""
        item = {"number": self.items, "sum": self.sum, "bytes": bytes([self.items % 251]) * size}
        self._add(item)
        return item

    def take(self, item: dict[str, Any]) -> None:
        """Check that an item is the next one, as it was sent."""
        expected = {
            "number": self.items,
            "sum": self.sum,
            "bytes": bytes([self.items % 251]) * len(item["bytes"]),
        }
        assert item == expected, f"item {self.items} is {str(item)[:200]}"
        self._add(item)

    def _add(self, item: dict[str, Any]) -> None:
        self.items += 1
        self.sum = zlib.crc32(item["bytes"], self.sum ^ self.items)
