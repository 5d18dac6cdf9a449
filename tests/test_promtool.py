"""Prometheus' own linter on what a scrape says: part of the Debian package `prometheus`, see `.ci/run`."""

from __future__ import annotations

import shutil
import subprocess

import headrace as hr
import pytest

from scrapes import Scrape
from support import serving

PROMTOOL = shutil.which("promtool")

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(
        PROMTOOL is None, reason="promtool is not installed: it is part of Debian's prometheus"
    ),
]


async def echo(request):
    return request


async def doubled(items):
    return [2 * item for item in items]


async def test_promtool_finds_nothing_wrong_with_a_scrape():
    async with serving({"echo": echo}) as (_, router):
        await router.call(1)
        async with hr.Batcher(doubled, name='dou"b\\led\n') as batcher:
            assert await batcher.submit(1) == 2
    text = hr.metrics.render()
    assert Scrape(text).get("batch_submitted_total", batcher='dou"b\\led\n') >= 1.0
    checked = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
