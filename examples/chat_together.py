"""Several conversations decoded together: a step engine behind a batcher, served to routers.

`smollm2_numpy.Decoder` makes one token for each of its conversations in one pass over the model. A
`headrace.Batcher` runs it: requests join and leave between passes, each reads its own stream, and one that
is closed leaves at the next pass. A worker serves the batcher; here a router asks it for a few answers, one
after the other and then all at once, and they are the same.
"""

import asyncio
import sys
import time
from typing import Any

import headrace as hr

from smollm2_model import load
from smollm2_numpy import Decoder

PROMPTS = [
    "What is a water wheel?",
    "Name three rivers.",
    "Why is the sky blue?",
    "Say hello in French.",
]
TOKENS = 32


class Chat:
    """The engine, made by the batcher's own thread, which alone uses it."""

    def __init__(self) -> None:
        self._decoder = Decoder(load())

    def capacity(self) -> int:
        """How many more conversations may join."""
        return self._decoder.capacity()

    def add(self, items: list[tuple[hr.Ticket, Any]]) -> None:
        """These join at the next step."""
        self._decoder.add(items)

    def remove(self, tickets: list[hr.Ticket]) -> None:
        """Nobody reads these any more."""
        self._decoder.remove(tickets)

    def step(self) -> list[tuple[hr.Ticket, Any, bool]]:
        """One token for each."""
        return [
            (ticket, result if isinstance(result, Exception) else result.text, done)
            for ticket, result, done in self._decoder.step()
        ]


async def answer(router: hr.Router, prompt: str) -> tuple[str, int]:
    """The model's answer, and of how many tokens it is."""
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
    pieces = [piece async for piece in router.generate(request)]
    return "".join(pieces), len(pieces)


async def main() -> int:
    """Ask, and fail if company changes an answer."""
    batcher = hr.Batcher(Chat, name="chat")
    async with hr.serve({"chat": batcher}) as worker, hr.Router(worker.address) as router:
        await answer(router, "Hello")
        began = time.perf_counter()
        alone = [await answer(router, prompt) for prompt in PROMPTS]
        alone_s = time.perf_counter() - began
        began = time.perf_counter()
        together = await asyncio.gather(*(answer(router, prompt) for prompt in PROMPTS))
        together_s = time.perf_counter() - began
    if alone != list(together):
        print("An answer depends on who else asks.")
        return 1
    for prompt, (text, _) in zip(PROMPTS, together, strict=True):
        print(f"{prompt}\n  {' '.join(text.split())}")
    tokens = sum(count for _, count in together)
    print(
        f"{tokens} tokens: one answer after the other {tokens / alone_s:.0f} a second, "
        f"together {tokens / together_s:.0f}, {alone_s / together_s:.1f} times as many"
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
