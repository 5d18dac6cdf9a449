"""The counters that a process is started under: which are usable here, and what they wrote.

A counter is a command put before another, and a parser of the file that it leaves behind.
"""

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What `perf stat` counts, where the kernel lets it. System calls by name only as far as arms make many
# of them: each event makes a switch of threads a little slower.
_PERF_EVENTS = (
    "raw_syscalls:sys_enter",
    *(
        f"syscalls:sys_enter_{name}"
        for name in (
            "read",
            "write",
            "writev",
            "recvfrom",
            "sendto",
            "recvmsg",
            "sendmsg",
            "epoll_wait",
            "epoll_pwait",
            "futex",
        )
    ),
    "context-switches",
    "page-faults",
    "instructions:u",
    "instructions:k",
)
_PERF_NAMES = {"raw_syscalls:sys_enter": "all system calls"}
PROBE_TIMEOUT_S = 10


@dataclass(frozen=True)
class Tool:
    """One way to count. The plain one adds nothing; its counts come from the client."""

    name: str
    wrapper: Callable[[Path], list[str]]
    parse: Callable[[str], Counter[str]]


def plain() -> Tool:
    """Return the tool that adds nothing to a process."""
    return Tool("plain", lambda _: [], lambda _: Counter())


def strace() -> Tool:
    """Return `strace -c`, which knows every system call by name, and slows each of them."""
    if shutil.which("strace") is None:
        raise LookupError("strace is not installed: install the package `strace` (apt, dnf, pacman, apk)")
    command = ["strace", "-f", "-c", "-U", "calls,errors,name"]
    _probe([*command, "-o", "/dev/null", "true"], "ptrace is not permitted here")
    return Tool("strace", lambda path: [*command, "-o", str(path)], parse_strace)


def perf() -> Tool:
    """Return `perf stat` with those of its events that can be counted here."""
    if shutil.which("perf") is None:
        raise LookupError("perf is not installed: install `linux-perf` (Debian), `perf` or `linux-tools`")
    events = [event for event in _PERF_EVENTS if _can_count(event)]
    if not events:
        raise LookupError("perf may count nothing here: see /proc/sys/kernel/perf_event_paranoid")
    command = ["perf", "stat", "-x", ";", "-e", ",".join(events)]
    return Tool("perf", lambda path: [*command, "-o", str(path), "--"], parse_perf)


def parse_strace(text: str) -> Counter[str]:
    """Return the calls of each name, and how many of them failed."""
    counts: Counter[str] = Counter()
    for words in map(str.split, text.splitlines()):
        if len(words) in (2, 3) and words[0].isdigit() and words[-1] != "total":
            counts[words[-1]] = int(words[0])
            counts["all system calls"] += int(words[0])
            if len(words) == 3:
                counts[f"{words[-1]}, failed"] = int(words[1])
    return counts


def parse_perf(text: str) -> Counter[str]:
    """Return the events that were counted."""
    counts: Counter[str] = Counter()
    for fields in (line.split(";") for line in text.splitlines()):
        if len(fields) > 2 and fields[0].isdigit():
            name = _PERF_NAMES.get(fields[2], fields[2].removeprefix("syscalls:sys_enter_"))
            counts[name] = int(fields[0])
    return counts


def _can_count(event: str) -> bool:
    """Say whether `perf stat` can count an event of a process of ours."""
    command = ["perf", "stat", "-x", ";", "-e", event, "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    return done.returncode == 0 and "<not" not in done.stderr


def _probe(command: Sequence[str], otherwise: str) -> None:
    """Raise with a reason where a command does not work."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    if done.returncode:
        raise LookupError(f"{command[0]} does not work: {done.stderr.strip() or otherwise}")
