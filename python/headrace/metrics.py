"""The metrics of this process: as text, and for applications that already expose theirs.

``serve(metrics="127.0.0.1:9464")`` and ``Router(metrics=...)`` open a port of their own, for which nothing
here is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace._headrace import metric_families, render_metrics

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

__all__ = ["collector", "render"]


def render() -> str:
    """The metrics of this process as text, in Prometheus' format: what ``/metrics`` says.

    Raises:
        ForkError: this process was forked after Headrace had started.
    """
    return render_metrics()


def collector() -> Collector:
    """The metrics of this process for a registry of ``prometheus_client``, which must be installed.

    Raises:
        ModuleNotFoundError: ``prometheus_client`` is not installed.

    Example:
        >>> from prometheus_client import REGISTRY  # doctest: +SKIP
        >>> REGISTRY.register(headrace.metrics.collector())  # doctest: +SKIP
    """
    # Few programs need it, and it is no requirement of this package.
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    class HeadraceCollector(Collector):
        """Asks for all families with every scrape."""

        def collect(self) -> Iterable[Metric]:
            for name, documentation, kind, samples in metric_families():
                # It adds the suffix of counters itself.
                family = Metric(name.removesuffix("_total"), documentation, kind)
                for sample, labels, value in samples:
                    family.add_sample(sample, dict(labels), value)
                yield family

        def describe(self) -> Iterable[Metric]:
            """Nothing, so that a registry asks for no values only to learn the names."""
            return ()

    return HeadraceCollector()
