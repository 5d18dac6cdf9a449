"""Workers with an engine that makes tokens as a language model does: each depends on the prompt and on every
token before it. The argument says how many; each is a process of its own and prints its address and its pid.

They are forked, since a test that kills one for each token needs many, and end with the process that made
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import zlib

import headrace as hr


def next_token(said: list[int]) -> int:
    return zlib.crc32(repr(said).encode()) % 50_000


async def tokens(request):
    """Continues `said` until it has `length` tokens. Where it has `die` of them, it kills its process, unless
    the file `died` shows that one has died before; where it has `wait` of them, it waits for ever.
    """
    said = list(request["said"])
    while True:
        if len(said) == request.get("die"):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(request["died"], os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        if len(said) == request.get("wait"):
            await asyncio.Event().wait()
        if len(said) == request["length"]:
            return
        said.append(next_token(said))
        yield said[-1]
        # One task for each request: others have their turn, and what was yielded leaves.
        await asyncio.sleep(0)


async def serve(parent: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(parent, ended.set)
    async with hr.serve(tokens, discovery=False) as worker:
        os.write(sys.stdout.fileno(), f"{worker.address} {os.getpid()}\n".encode())
        await ended.wait()


def main() -> None:
    parent, held = os.pipe()
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.close(held)
            asyncio.run(serve(parent))
            return
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


main()
