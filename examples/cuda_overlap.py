"""Copies and kernels of several streams overlap: the same items on one stream, then on four.

Runs on a GPU; without one it says why, and shows the same on a simulated device, whose times mean nothing.

    python examples/cuda_overlap.py [items]
"""

from __future__ import annotations

import asyncio
import sys
import time

from headrace import cuda

ITEM_BYTES = 4 << 20
KERNEL_US = 2000


async def handle(pool: cuda.StreamPool, item: bytes) -> bytes:
    """What a model does with an item: there, compute, back."""
    async with pool.lease() as stream:
        there = await stream.copy_to_device(item)
        stream.spin(KERNEL_US)  # stands for your kernels: `with torch.cuda.stream(stream.torch()): ...`
        return bytes(await stream.copy_to_host(there))


async def measure(streams: int, items: list[bytes], backend: str) -> float:
    """Seconds for all items, with that many streams."""
    async with cuda.StreamPool(max_streams=streams, backend=backend) as pool:  # type: ignore[arg-type]
        await asyncio.gather(*(handle(pool, item) for item in items[:streams]))  # creates and pins
        began = time.perf_counter()
        answers = await asyncio.gather(*(handle(pool, item) for item in items))
        took = time.perf_counter() - began
    assert answers == items
    return took


async def main(count: int) -> None:
    reason = cuda.unavailable_reason()
    backend = "cuda" if reason is None else "sim"
    print(f"on {cuda.devices()[0].name}" if reason is None else f"simulated, since {reason}")
    items = [bytes([number % 256]) * ITEM_BYTES for number in range(count)]
    one = await measure(1, items, backend)
    four = await measure(4, items, backend)
    print(f"1 stream: {one * 1e3:.0f} ms, 4 streams: {four * 1e3:.0f} ms, {one / four:.1f} times as fast")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 16))
