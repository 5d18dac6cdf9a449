"""A program that calls `run` without a guard, so that its worker processes would call it too."""

from __future__ import annotations

import headrace


async def engine(request):
    return request


headrace.run("pool_runs:engine", workers=2)
