"""mosec's server for `batching_mosec.py`; it ends when its standard input closes."""

import os
import signal
import sys
import threading
from argparse import ArgumentParser
from typing import Any

from mosec import Server, Worker

from batching_arms import BATCH_SIZE
from batching_functions import model

# The least that it knows: a millisecond.
WAIT_MS = 1


class Nothing(Worker):
    """Answers items with themselves."""

    def forward(self, data: list[Any]) -> list[Any]:
        return data


class Model(Worker):
    """Takes its time for it."""

    def forward(self, data: list[Any]) -> list[Any]:
        return model(data)


def end_with_stdin() -> None:
    """Stop the server when whoever started it has gone, or says so."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--function", choices=("nothing", "model"))
    parser.add_argument("--cpu", type=int)
    options, _ = parser.parse_known_args()
    # Before anything starts a thread or a process: they inherit it.
    os.sched_setaffinity(0, {options.cpu})
    threading.Thread(target=end_with_stdin, daemon=True).start()
    server = Server()
    worker = {"nothing": Nothing, "model": Model}[options.function]
    server.append_worker(worker, max_batch_size=BATCH_SIZE, max_wait_time=WAIT_MS)
    server.run()
