"""A worker with two endpoints: `echo` gives the request back, `words` streams its words.

`python echo_worker.py [ADDRESS]` serves both until Ctrl-C or SIGTERM;
`headrace serve echo_worker:echo` serves one of them.
"""

import sys
from collections.abc import AsyncGenerator
from typing import Any

import headrace


async def echo(request: Any) -> Any:
    """A unary engine: one request, one response."""
    return request


async def words(request: str, ctx: headrace.Context) -> AsyncGenerator[str, None]:
    """A streaming engine, which ends early when its caller asks it to stop."""
    for word in request.split():
        if ctx.is_stopped:
            return
        yield word


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7411"
    headrace.run({"echo": echo, "words": words}, address)
