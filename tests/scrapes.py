"""What a scrape says, for tests of metrics: by series, and by how much a series has risen."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import headrace as hr
from prometheus_client.parser import text_string_to_metric_families

from support import GUARD, eventually

Series = tuple[str, tuple[tuple[str, str], ...]]


def _given(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Labels but those that are empty, which to Prometheus are not there: a family's series all have the
    labels that any worker of the process was given.
    """
    return tuple(sorted((name, value) for name, value in labels.items() if value))


class Scrape:
    """All series with their values.

    Args:
        text: what ``/metrics`` said; this process's own by default.
    """

    def __init__(self, text: str | None = None) -> None:
        self.text = hr.metrics.render() if text is None else text
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.series: dict[Series, float] = {
            (sample.name, _given(sample.labels)): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        return self.series.get(("headrace_" + name, _given(labels)), 0.0)

    def rise(self, before: Scrape, name: str, **labels: str) -> float:
        return self.get(name, **labels) - before.get(name, **labels)


def assert_rose(before: Scrape, expected: dict[str, float], **labels: str) -> None:
    """Each of these series has risen by so much. In ``errors_total:generate`` the word is a label."""
    now = Scrape()
    found = {}
    for name in expected:
        series, _, word = name.partition(":")
        more = {"error_type" if series.endswith("_errors_total") else "reason": word} if word else {}
        # Sums of shares are not exact.
        found[name] = round(now.rise(before, series, **labels, **more), 9)
    wrong = {name: (found[name], by) for name, by in expected.items() if found[name] != by}
    assert not wrong, f"found and expected: {wrong}"


def fetch(address: str, path: str) -> tuple[int, str]:
    """What the port says: status and body. Blocks."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=GUARD) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def get(address: str | None, path: str) -> tuple[int, str]:
    """The same, beside the loop."""
    assert address is not None
    return await asyncio.to_thread(fetch, address, path)


async def says(address: str | None, path: str, status: int, text: str = "") -> dict[str, Any]:
    """Wait until the port says this; its whole answer."""
    answer: list[str] = []

    async def look() -> bool:
        found, body = await get(address, path)
        answer[:] = [body]
        return found == status and text in body

    loop = asyncio.get_running_loop()
    until = loop.time() + GUARD
    while not await look():
        assert loop.time() < until, f"{path} never was {status} with {text!r}: {answer}"
        await asyncio.sleep(0.01)
    return json.loads(answer[0])


async def at_rest(before: Scrape, name: str, count: float, **labels: str) -> None:
    """Wait until a series has risen by so much."""
    await eventually(lambda: Scrape().rise(before, name, **labels) == count)
