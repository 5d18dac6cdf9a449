"""One run of a case: the arm, how much to load, and the core that is free for whatever is not measured."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from batching_arms import Batching, BatchingArm, Function, Settings


@dataclass(frozen=True)
class Place:
    """What a load is given."""

    arm: BatchingArm
    params: Mapping[str, Any]
    other_cpu: int
    repeat: int

    def open(self, function: Function, **settings: Any) -> AbstractAsyncContextManager[Batching]:
        """Collect batches for a function while entered."""
        return self.arm.load_batching().open(
            function, Settings(other_cpu=self.other_cpu, options=self.arm.options, **settings)
        )

    @property
    def late(self) -> tuple[type[Exception], ...]:
        """What an item raises that missed its time, or had no room."""
        return self.arm.load_batching().LATE

    def share_of(self, name: str) -> int:
        """Return a number of items, of which a slow arm does only its share."""
        return round(self.params[name] * self.arm.share)
