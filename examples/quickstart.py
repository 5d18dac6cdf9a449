"""The smallest Headrace program: an engine, a worker and a router in one process."""

import asyncio
from collections.abc import AsyncGenerator

import headrace as hr


async def greet(request: dict[str, str], ctx: hr.Context) -> AsyncGenerator[dict[str, str], None]:
    for word in ("hello", request["name"]):
        yield {"word": word}


async def main() -> None:
    async with hr.serve(greet, "127.0.0.1:0") as worker, hr.Router(worker.address) as router:
        async for item in await router.generate({"name": "world"}, timeout=5):
            print(item["word"])


if __name__ == "__main__":
    asyncio.run(main())
