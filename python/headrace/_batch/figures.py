"""What a batcher has counted, as one consistent snapshot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """How a figure is distributed.

    Attributes:
        bounds: upper bounds, rising; the last one is infinite.
        counts: how many values were at most each bound.
        sum: of all values.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum: float = 0.0

    @property
    def count(self) -> int:
        """How many values there are."""
        return self.counts[-1] if self.counts else 0

    @property
    def mean(self) -> float | None:
        """Their mean; ``None`` without any."""
        return self.sum / self.count if self.count else None


@dataclasses.dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts of a batcher since it started, and what it holds at present. Times are in seconds.

    At every moment ``submitted`` is the sum of ``items_rejected``, ``completed``, ``failed``, ``expired``,
    ``cancelled``, ``closed``, ``timed_out``, ``queued`` and ``dispatched``.

    Attributes:
        submitted: items that were submitted, refused ones included.
        rejected: items that were refused, by reason.
        completed: items that the function answered.
        failed: items for which it failed, or whose worker was lost.
        expired: items whose time was over while they waited.
        expired_early: of those, the ones that would have missed their deadline.
        cancelled: items whose caller cancelled them.
        closed: items that waited when the batcher was closed.
        timed_out: items whose time was over while the function had them.
        late_results: results that came when nobody waited for them any more.
        batches: batches that were handed out, by reason (see :attr:`Batch.reason`).
        consecutive_errors: batches that failed as a whole since one last did not.
        workers_lost: workers that were given up.
        queued: items that wait.
        queued_cost: what they cost.
        dispatched: items that the function has and somebody waits for.
        abandoned: items that the function has and nobody waits for any more.
        in_flight: batches that the function has.
        max_batch_size: as configured.
        min_batch_size_seen: items of the smallest batch so far; 0 before the first.
        max_batch_size_seen: items of the largest batch so far.
        batch_size: items of each batch.
        fill: items of each batch as a share of ``max_batch_size``.
        batch_cost: cost of each batch.
        queue_wait: each item's time from submission to dispatch.
        formation: each batch's time from its oldest item's submission to dispatch.
        execution: each batch's time from dispatch to answer.
    """

    submitted: int = 0
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    completed: int = 0
    failed: int = 0
    expired: int = 0
    expired_early: int = 0
    cancelled: int = 0
    closed: int = 0
    timed_out: int = 0
    late_results: int = 0
    batches: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    consecutive_errors: int = 0
    workers_lost: int = 0
    queued: int = 0
    queued_cost: int = 0
    dispatched: int = 0
    abandoned: int = 0
    in_flight: int = 0
    max_batch_size: int = 0
    min_batch_size_seen: int = 0
    max_batch_size_seen: int = 0
    batch_size: Histogram = Histogram()
    fill: Histogram = Histogram()
    batch_cost: Histogram = Histogram()
    queue_wait: Histogram = Histogram()
    formation: Histogram = Histogram()
    execution: Histogram = Histogram()

    @classmethod
    def of(cls, counted: Mapping[str, Any]) -> BatchStats:
        """The snapshot that a queue gave."""
        figures: dict[str, Any] = {}
        for name, value in counted.items():
            if isinstance(value, tuple):
                bounds, counts, total = cast("tuple[list[float], list[int], float]", value)
                figures[name] = Histogram(tuple(bounds), tuple(counts), total)
            else:
                figures[name] = value
        return cls(**figures)

    @property
    def items_rejected(self) -> int:
        """Items that were refused, for whatever reason."""
        return sum(self.rejected.values())

    @property
    def batches_dispatched(self) -> int:
        """Batches that were handed out."""
        return sum(self.batches.values())

    @property
    def items_processed(self) -> int:
        """Items that the function has answered, or failed for."""
        return self.completed + self.failed

    @property
    def pending_items(self) -> int:
        """Items that wait, or that the function has for somebody."""
        return self.queued + self.dispatched

    @property
    def is_conserved(self) -> bool:
        """Whether every item that was submitted is accounted for exactly once; always, or it is a defect."""
        ended = self.completed + self.failed + self.expired + self.cancelled + self.closed + self.timed_out
        return self.submitted == self.items_rejected + ended + self.pending_items

    @property
    def rejection_rate(self) -> float | None:
        """Share of the items that were refused; ``None`` before the first."""
        return self.items_rejected / self.submitted if self.submitted else None

    @property
    def timeout_rate(self) -> float | None:
        """Share of the items that expired or timed out; ``None`` before the first."""
        return (self.expired + self.timed_out) / self.submitted if self.submitted else None

    @property
    def avg_batch_size(self) -> float | None:
        """Items of a batch, on average; ``None`` before the first batch."""
        return self.batch_size.mean

    @property
    def avg_fill_ratio(self) -> float | None:
        """Share of ``max_batch_size`` that batches had, on average; ``None`` before the first."""
        return self.fill.mean

    @property
    def avg_queue_wait(self) -> float | None:
        """Seconds that an item waited, on average; ``None`` before the first batch."""
        return self.queue_wait.mean

    @property
    def avg_formation(self) -> float | None:
        """Seconds from a batch's oldest item to its dispatch, on average; ``None`` before the first batch."""
        return self.formation.mean

    @property
    def avg_processing(self) -> float | None:
        """Seconds that the function took for a batch, on average; ``None`` before the first answer."""
        return self.execution.mean

    def __str__(self) -> str:
        def shown(value: float | None, scale: float = 1.0) -> str:
            return "-" if value is None else f"{value * scale:.2f}"

        return (
            f"batches={self.batches_dispatched} items={self.items_processed}/{self.submitted} "
            f"rejected={self.items_rejected} expired={self.expired} timed_out={self.timed_out} "
            f"cancelled={self.cancelled} queued={self.queued} fill={shown(self.avg_fill_ratio)} "
            f"wait={shown(self.avg_queue_wait, 1e3)}ms run={shown(self.avg_processing, 1e3)}ms "
            f"errors_in_a_row={self.consecutive_errors}"
        )
