"""Where and with what a report was made, and how busy others kept the machine meanwhile."""

import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import peers

PACKAGES = ("uvloop", "msgspec", "headrace")


def describe_machine() -> dict[str, object]:
    """Return the CPU model, the cores we may use, and the kernel."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "CPU part"))
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average_at_start": os.getloadavg()[0],
    }


def describe_versions(environments: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the versions of all that the figures depend on, the peers' as their environments say."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    for environment in environments:
        for package, version in peers.versions(environment).items():
            versions[f"{environment}/{package}"] = version
    versions["commit"] = _commit()
    return versions


def _commit() -> str | None:
    """Return the commit of the checkout these files are in, marked where files differ from it."""
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    changed = commit and _git(here, "status", "--porcelain")
    return f"{commit}+changes" if changed else commit or None


def _git(folder: Path, *words: str) -> str:
    """Return what a git command says, or nothing where there is no repository or no git."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass(frozen=True)
class Busy:
    """A reading of the machine's busy time, to tell afterwards how much of it was not ours."""

    all_s: float
    ours_s: float
    at_s: float

    @classmethod
    def read(cls) -> "Busy":
        """Read the busy time of all cores, and of this process and the children it has reaped."""
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = ticks[:8]
        busy = user + nice + system + irq + softirq + steal
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ours = sum(used.ru_utime + used.ru_stime for used in usages)
        return cls(busy / os.sysconf("SC_CLK_TCK"), ours, monotonic())

    def others_share(self, since: "Busy") -> float:
        """Return the share of the machine's capacity that others used since an earlier reading."""
        others_s = (self.all_s - since.all_s) - (self.ours_s - since.ours_s)
        capacity_s = (self.at_s - since.at_s) * (os.cpu_count() or 1)
        return max(0.0, others_s / capacity_s)
