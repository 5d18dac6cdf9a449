"""What this process has used: CPU time of all its threads, and memory.

Peak memory is `VmHWM`, not `ru_maxrss`: Linux carries the latter over `exec`, so a child would
report its parent's memory. Growth is read from `RssAnon`, which file pages do not disturb.
"""

import time
from pathlib import Path

_FIELDS = {"VmHWM": "peak_rss_kib", "RssAnon": "anonymous_kib"}


def read() -> dict[str, float]:
    """Return `cpu_s`, `peak_rss_kib` and `anonymous_kib` of the calling process."""
    used: dict[str, float] = {"cpu_s": time.process_time()}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            used[_FIELDS[name]] = float(value.split()[0])
    return used
