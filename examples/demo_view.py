"""What the demo shows: the answers while they arrive, and what they amounted to.

On a terminal the answers are a live table; elsewhere they are plain lines without control codes.
Nothing here knows where the tokens come from.
"""

import os
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100
TAIL_LINES = 2  # Of an unfinished answer: eight answers then fit a terminal of 24 lines.
FIXED_WIDTH = 36  # Of the number, worker, state and token columns, with all padding.
ANSWER_SHARE = 2  # The answer column is twice as wide as the prompt column.
STATE_STYLES = {"waiting": "dim", "answering": "yellow", "done": "green", "failed": "red"}


@dataclass
class Answer:
    """One prompt, and its answer as far as it has come."""

    prompt: str
    worker: str = ""
    error: str = ""
    tokens: list[str] = field(default_factory=list[str])
    asked_at_s: float = 0.0
    first_token_at_s: float = 0.0
    ended_at_s: float = 0.0

    @property
    def state(self) -> str:
        if self.error:
            return "failed"
        if self.ended_at_s:
            return "done"
        return "answering" if self.tokens else "waiting"

    @property
    def text(self) -> str:
        return " ".join("".join(self.tokens).split())

    @property
    def first_token_ms(self) -> float:
        return (self.first_token_at_s - self.asked_at_s) * 1000

    def ask(self) -> None:
        self.asked_at_s = time.perf_counter()

    def add(self, token: str) -> None:
        if not self.tokens:
            self.first_token_at_s = time.perf_counter()
        self.tokens.append(token)

    def end(self, error: str = "") -> None:
        self.error = error
        self.ended_at_s = time.perf_counter()


def make_console() -> Console:
    """A console that writes control codes to a terminal only, whatever the environment says."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Console(highlight=False)
    return Console(force_terminal=False, color_system=None, width=PLAIN_WIDTH, highlight=False)


@contextmanager
def live_view(console: Console, answers: Sequence[Answer]) -> Generator[None, None, None]:
    """Show the answers while the block runs and, on a terminal, once more in full at its end."""
    if not console.is_terminal:
        yield
        return
    with Live(
        console=console,
        get_renderable=lambda: _answer_table(answers, _tail_chars_max(console.width)),
        refresh_per_second=12,
        transient=True,
    ):
        yield
    console.print(_answer_table(answers, None))


def print_first_token(console: Console, number: int, answer: Answer) -> None:
    """Say that an answer has begun, where no live table says so."""
    if not console.is_terminal:
        print_plain(console, f"[{number}] {answer.worker}: first token after {answer.first_token_ms:.0f} ms")


def print_end(console: Console, number: int, answer: Answer) -> None:
    """Say how an answer ended, where no live table says so."""
    if not console.is_terminal:
        outcome = answer.error or f"{len(answer.tokens)} tokens"
        print_plain(console, f"[{number}] {answer.state}, {outcome}: {answer.prompt}")
        print_plain(console, f"    {answer.text}")


def print_plain(console: Console, line: str) -> None:
    """Print one unwrapped line of text that may hold anything, markup included."""
    console.print(Text(line), soft_wrap=True)


def _tail_chars_max(console_width: int) -> int:
    """How much of an answer's end fits its column, with room lost to wrapping at words."""
    answer_width = (console_width - FIXED_WIDTH) * ANSWER_SHARE // (ANSWER_SHARE + 1)
    return max(20, TAIL_LINES * (answer_width - 6))


def _answer_table(answers: Sequence[Answer], tail_chars_max: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("#", width=1, justify="right")
    table.add_column("prompt", ratio=1, no_wrap=tail_chars_max is not None)
    table.add_column("worker", width=8, no_wrap=True)
    table.add_column("state", width=9, no_wrap=True)
    table.add_column("tokens", width=6, justify="right")
    table.add_column("answer", ratio=ANSWER_SHARE)
    for number, answer in enumerate(answers, start=1):
        text = answer.error or answer.text
        if tail_chars_max is not None and len(text) > tail_chars_max:
            text = "… " + text[-tail_chars_max:].partition(" ")[2]
        table.add_row(
            str(number),
            Text(answer.prompt),
            Text(answer.worker),
            Text(answer.state, style=STATE_STYLES[answer.state]),
            str(len(answer.tokens)),
            Text(text),
        )
    return table


def summary_table(answers: Sequence[Answer]) -> Table:
    """Count and time the answers that were completed, per worker and in total."""
    table = Table(title="Summary", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("answers", "tokens", "tokens/s", "first token, median", "first token, worst"):
        table.add_column(heading, justify="right")
    done = [answer for answer in answers if answer.state == "done" and answer.tokens]
    for worker in sorted({answer.worker for answer in done}):
        _add_summary(table, worker, [answer for answer in done if answer.worker == worker])
    table.add_section()
    _add_summary(table, "total", done)
    return table


def _add_summary(table: Table, name: str, answers: Sequence[Answer]) -> None:
    if not answers:
        table.add_row(name, "0", "0", "-", "-", "-")
        return
    tokens = sum(len(answer.tokens) for answer in answers)
    asked_at_s = min(answer.asked_at_s for answer in answers)
    elapsed_s = max(answer.ended_at_s for answer in answers) - asked_at_s
    first_token_ms = [answer.first_token_ms for answer in answers]
    table.add_row(
        name,
        str(len(answers)),
        str(tokens),
        f"{tokens / elapsed_s:.0f}",
        f"{statistics.median(first_token_ms):.0f} ms",
        f"{max(first_token_ms):.0f} ms",
    )
