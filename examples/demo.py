"""Two workers, eight prompts, one crash: Headrace with a real language model.

Starts two worker processes that serve SmolLM2, asks them eight prompts at once and shows the
tokens as they arrive. Then it kills one worker in the middle of an answer: the other goes on
where it stopped, and the reader gets the answer that it would have got without the loss.
`--short` does the same with two prompts and a few tokens; `--kill-at N` kills after so many tokens.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import headrace
from rich.console import Console
from rich.text import Text

from demo_view import (
    Answer,
    live_view,
    make_console,
    print_end,
    print_first_token,
    summary_table,
)
from demo_workers import Worker, WorkerStartError, start_workers

ENGINE = "smollm2_engine:chat"
WORKER_COUNT = 2
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 120  # Eight answers share two cores; one takes a few seconds.
STORY_PROMPT = "Tell me a long story about a miller and his water wheel."


class DemoError(Exception):
    """Something that the demo promises did not happen."""


def chat_request(prompt: str, max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}


def rest_of(request: dict[str, Any], tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """The request for what is missing: the model goes on behind what it has said so far."""
    said = "".join(token["text"] for token in tokens)
    messages = [*request["messages"], {"role": "assistant", "content": said}]
    return {"messages": messages, "max_tokens": request["max_tokens"] - len(tokens)}


def story_tokens(short: bool) -> int:
    """How long the answer is whose worker is killed."""
    return 32 if short else 96


class Demo:
    """What every scene needs: where to ask, who answers, where to show it, how much to ask for."""

    def __init__(
        self,
        router: headrace.Router,
        workers: Sequence[Worker],
        console: Console,
        short: bool,
        kill_at: int | None,
    ) -> None:
        self.router = router
        self.console = console
        self.workers = {worker.instance_id: worker for worker in workers}
        self.max_tokens = 16 if short else 64
        self.story_tokens = story_tokens(short)
        self.kill_after_tokens = kill_at or self.story_tokens // 3

    def worker_of(self, stream: headrace.ResponseStream) -> Worker:
        instance_id = str(stream.instance_id)
        if instance_id not in self.workers:
            raise DemoError(f"instance {instance_id} is none of {', '.join(self.workers)}")
        return self.workers[instance_id]

    async def ask(self, number: int, answer: Answer) -> None:
        """Ask one prompt and keep its answer, or the reason why there is none."""
        request = chat_request(answer.prompt, self.max_tokens)
        answer.ask()
        try:
            async with await self.router.generate(request, timeout=ANSWER_TIMEOUT_S) as stream:
                answer.worker = self.worker_of(stream).name
                async for token in stream:
                    answer.add(token["text"])
                    if len(answer.tokens) == 1:
                        print_first_token(self.console, number, answer)
            answer.end()
        except headrace.HeadraceError as error:
            answer.end(f"{type(error).__name__}: {error}")
        print_end(self.console, number, answer)

    async def ask_all(self, prompts: Sequence[str]) -> None:
        """Ask every prompt at once, show the answers as they grow, and sum them up."""
        answers = [Answer(prompt) for prompt in prompts]
        with live_view(self.console, answers):
            await asyncio.gather(*(self.ask(n, answer) for n, answer in enumerate(answers, 1)))
        self.console.print(summary_table(answers))
        raise_if_failed(answers)

    async def lose_a_worker(self) -> None:
        """Kill a worker in the middle of its answer, and compare with the answer of one that lived."""
        show(self.console, "Now the worker is killed in the middle of an answer.", "bold")
        request = chat_request(STORY_PROMPT, self.story_tokens)
        whole = await self.router.generate(request, timeout=ANSWER_TIMEOUT_S)
        expected = "".join([token["text"] async for token in whole])
        async with await self.router.generate(request, timeout=ANSWER_TIMEOUT_S, resume=rest_of) as stream:
            victim = self.worker_of(stream)
            show(self.console, f"{victim.name} answers: {STORY_PROMPT}\n")
            story = await self.read_and_kill(stream, victim)
            successor = self.worker_of(stream)
        if stream.resumed != 1 or successor is victim:
            raise DemoError(f"{victim.name} was killed, and its answer was not continued elsewhere")
        if story != expected:
            raise DemoError(f"the continued answer differs from the whole one: {expected}")
        line = f"\n\n{victim.name} is gone; {successor.name} went on, and not a token differs."
        show(self.console, line, "bold")

    async def read_and_kill(self, stream: headrace.ResponseStream, victim: Worker) -> str:
        """Read the stream to its end, killing its worker on the way."""
        story = ""
        tokens_read = 0
        async for token in stream:
            style = "bold red" if tokens_read == self.kill_after_tokens else ""
            self.console.print(Text(token["text"], style=style), end="", soft_wrap=True)
            story += token["text"]
            tokens_read += 1
            if tokens_read == self.kill_after_tokens:
                victim.kill()
        return story


def show(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style), soft_wrap=True)


def raise_if_failed(answers: Sequence[Answer]) -> None:
    failed = [answer for answer in answers if answer.state == "failed"]
    if failed:
        raise DemoError(f"{len(failed)} of {len(answers)} failed, first: {failed[0].error}")


async def run_demo(short: bool, kill_at: int | None) -> None:
    end_on_signals()
    console = make_console()
    prompts = Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()
    show(console, f"Starting {WORKER_COUNT} workers that serve {ENGINE} ...")
    async with start_workers(ENGINE, WORKER_COUNT) as workers:
        for worker in workers:
            show(console, f"{worker.name} is ready at {worker.address}, metrics at {worker.metrics}/metrics")
        addresses = [worker.address for worker in workers]
        async with headrace.Router(addresses, metrics="127.0.0.1:0") as router:
            await router.wait_for_instances(WORKER_COUNT, timeout=CONNECT_TIMEOUT_S)
            show(console, f"the router's metrics are at {router.metrics_address}/metrics")
            demo = Demo(router, workers, console, short, kill_at)
            await demo.ask_all(prompts[:2] if short else prompts)
            await demo.lose_a_worker()


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does: through every clean-up."""
    task = asyncio.current_task()
    assert task is not None
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signal_number, task.cancel)


def main() -> int:
    parser = argparse.ArgumentParser(description="Two workers, eight prompts, one crash.")
    parser.add_argument("--short", action="store_true", help="two prompts and a few tokens")
    parser.add_argument("--kill-at", type=int, metavar="N", help="kill the worker after N tokens")
    arguments = parser.parse_args()
    most = story_tokens(arguments.short) - 1
    if arguments.kill_at is not None and not 1 <= arguments.kill_at <= most:
        parser.error(f"--kill-at must be 1 to {most}")
    try:
        asyncio.run(run_demo(arguments.short, arguments.kill_at))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130
    except (WorkerStartError, DemoError, headrace.HeadraceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
