"""The curves: what grows, at which points, under which load, and which figures are drawn."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import Bench, Figures
from scale_items import sizes, streams
from scale_links import calls, idle_links
from scale_memory import idle_streams, stopped, unread


@dataclass(frozen=True)
class Metric:
    """One figure of a curve.

    `flat` says that it is a cost (or, with `rate`, a rate) of one unit of work, which growth should
    not change: it is held against its neighbour in search of cliffs.
    """

    key: str
    unit: str
    flat: bool = True
    rate: bool = False


@dataclass(frozen=True)
class Curve:
    """One thing that grows. The load is given the point as `x`."""

    name: str
    title: str
    grows: str
    points: tuple[int, ...]
    quick_points: tuple[int, ...]
    metrics: tuple[Metric, ...]
    load: Callable[[Bench], Awaitable[Figures]]
    params: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    many_servers: bool = False
    many_clients: bool = False

    def params_at(self, x: int, share: float, quick: bool) -> dict[str, Any]:
        """Return what the load is given at one point; a slow arm moves only its share of the items."""
        params = {**self.params, **(self.quick if quick else {}), "x": x}
        for key in self.shared:
            params[key] = round(params[key] * share)
        return {**params, "clients": x} if self.many_clients else params


_SIZES = tuple(8**power for power in range(1, 9))
_CLIENT_SERVER_CPU = (Metric("client_us", "us CPU client"), Metric("server_us", "us CPU server"))
_IDLE = (
    Metric("client_idle_ms", "ms CPU/s client idle", flat=False),
    Metric("server_idle_ms", "ms CPU/s server idle", flat=False),
)

_ALL = (
    Curve(
        "streams",
        "token dicts over many streams of one link",
        "streams",
        (1, 10, 100, 1_000, 10_000),
        (1, 10, 100, 1_000, 10_000),
        (
            Metric("items_per_s", "items/s", rate=True),
            *_CLIENT_SERVER_CPU,
            Metric("open_us", "us to open each"),
        ),
        streams,
        {"items": 400_000, "items_min": 40, "seconds": 1.0},
        {"items": 200_000, "items_min": 20, "seconds": 0.3},
        shared=("items", "items_min"),
    ),
    Curve(
        "sizes",
        "one stream of bytes items",
        "bytes in an item",
        _SIZES,
        _SIZES,
        (
            Metric("mb_per_s", "MB/s", rate=True),
            Metric("us_per_item", "us/item", flat=False),
            Metric("cpu_us", "us CPU/item", flat=False),
            Metric("cpu_ms_per_mb", "ms CPU/MB"),
        ),
        sizes,
        {"bytes": 64 << 20, "bytes_max": 512 << 20, "items_max": 200_000, "seconds": 0.8},
        {"bytes": 32 << 20, "bytes_max": 128 << 20, "items_max": 50_000, "seconds": 0.2},
        shared=("bytes", "items_max"),
    ),
    Curve(
        "workers",
        "unary calls, 256 in flight, one client over many workers",
        "workers",
        (1, 4, 16, 64),
        (1, 8, 64),
        (
            Metric("requests_per_s", "req/s", rate=True),
            *_CLIENT_SERVER_CPU,
            Metric("p99_us", "us p99", flat=False),
            Metric("connect_ms", "ms to connect all", flat=False),
        ),
        calls,
        {"in_flight": 256, "warm_up_s": 0.3, "seconds": 1.0},
        {"warm_up_s": 0.1, "seconds": 0.4},
        many_servers=True,
    ),
    Curve(
        "clients",
        "unary calls, 256 in flight in all, many clients to one worker",
        "clients",
        (1, 4, 16, 64),
        (1, 8, 64),
        (
            Metric("requests_per_s", "req/s", rate=True),
            *_CLIENT_SERVER_CPU,
            Metric("p50_us", "us p50", flat=False),
            Metric("p99_us", "us p99", flat=False),
        ),
        calls,
        {"in_flight": 256, "warm_up_s": 0.3, "seconds": 1.0},
        {"warm_up_s": 0.1, "seconds": 0.4},
        many_clients=True,
    ),
    Curve(
        "idle",
        "open streams on which nothing happens",
        "idle streams",
        (100, 1_000, 10_000),
        (1_000, 10_000),
        (
            Metric("client_kib", "KiB client"),
            Metric("server_kib", "KiB server"),
            Metric("open_us", "us to open each"),
            Metric("open_all_ms", "ms to open all", flat=False),
            *_IDLE,
        ),
        idle_streams,
        {},
    ),
    Curve(
        "links",
        "connections on which nothing happens",
        "idle links",
        (16, 64, 256),
        (256,),
        (
            Metric("client_kib", "KiB client"),
            Metric("server_kib", "KiB server"),
            Metric("connect_us", "us to connect each"),
            *_IDLE,
        ),
        idle_links,
        {},
    ),
    Curve(
        "unread",
        "8,000 token dicts on each stream, arrived and not taken",
        "unread streams",
        (1, 4, 16),
        (16,),
        (
            Metric("client_bytes", "B/item client"),
            Metric("server_bytes", "B/item server", flat=False),
            Metric("pushed", "items pushed", flat=False),
        ),
        unread,
        {"items": 8_000},
    ),
    Curve(
        "stopped",
        "8,000 token dicts on each stream, the client's process stopped",
        "unread streams",
        (16, 64),
        (64,),
        (
            Metric("server_kib", "KiB server", flat=False),
            Metric("server_bytes", "B/item server", flat=False),
            Metric("pushed", "items pushed", flat=False),
            Metric("pushed_share", "of all", flat=False),
        ),
        stopped,
        {"items": 8_000},
    ),
)

CURVES = {curve.name: curve for curve in _ALL}
