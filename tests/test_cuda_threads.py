"""Threads around a pool: who waits for a lock lets go of the interpreter; what is dropped is let go of,
though no thread could be started at first; and a loop that ends early leaves no buffer of Python behind.
"""

from __future__ import annotations

import pytest

from streams import needs_fake_driver, with_driver
from support import run_script

# A function of Python that the driver calls, and stands in, holding its lock: a thread that calls the driver
# stays there, with what it has locked. The function goes on when a timer's thread says so, which takes the
# interpreter.
HELD = """
from kernels import Kernels

class Held:
    def __init__(self, stream):
        self.inside, self.go = threading.Event(), threading.Event()
        self.function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.call)
        kernels = Kernels()
        kernels.check(kernels.driver.cuLaunchHostFunc(ctypes.c_void_p(int(stream)), self.function, None))
        assert self.inside.wait(20)

    def call(self, _):
        self.inside.set()
        assert self.go.wait(20)

    def until_the_next_waits(self):
        threading.Timer(0.05, self.go.set).start()

def stands(work):
    # The thread has come to where it stands still: it sleeps, and keeps doing so.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    status = f"/proc/self/task/{thread.native_id}/stat"
    asleep = 0
    while asleep < 20:
        time.sleep(0.001)
        asleep = asleep + 1 if open(status).read().rsplit(")", 1)[1].split()[0] == "S" else 0
    return thread
"""

SCENES = {
    # Whoever ends a lease waits for the call under it, and whoever looks at the lease for them.
    "resolve": ("ours.query", "ours.release", "pool.resolve(number)"),
    "live": ("ours.query", "ours.release", "found.live"),
    "repr": ("ours.query", "ours.release", "repr(found)"),
    # Whoever notes a use of a buffer has it while the driver is called.
    "the array interface": ("lambda: buffer.record_use(ours)", None, "buffer.__cuda_array_interface__"),
    "a buffer's readiness": ("lambda: buffer.record_use(ours)", None, "buffer.wait_on(ours)"),
}


@needs_fake_driver
@pytest.mark.parametrize("scene", SCENES)
def test_who_waits_for_a_lock_leaves_the_interpreter_to_whoever_its_holder_waits_for(scene):
    first, second, looks = SCENES[scene]
    with_driver(
        f"""
{HELD}
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as theirs:
        ours = await pool.lease()
        number, found = ours.id, pool.resolve(ours.id)
        buffer = await ours.copy_to_device(b"x" * 100)
        held = Held(theirs)
        threads = [stands({first})]
        {f"threads.append(stands({second}))" if second else ""}
        held.until_the_next_waits()
        {looks}
        assert held.go.is_set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 20)
        ours.release()
        del buffer, found
run(main)
"""
    )


def test_what_is_dropped_while_no_thread_can_be_started_comes_back_with_the_next():
    code = """
import asyncio, resource
from pathlib import Path
from headrace import cuda

def threads():
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]

async def main():
    pool = cuda.StreamPool(max_streams=2, backend="sim")
    one, two = await pool.lease(), await pool.lease()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # There is no room for the stack of a thread.
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), limits[1]))
    del one
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert pool.stats().in_use == 2 and "headrace-cuda-d" not in threads(), threads()
    del two
    async with pool.lease(timeout=20), pool.lease(timeout=20):
        assert "headrace-cuda-d" in threads()
asyncio.run(main())
"""
    assert run_script(code) == (0, "", "")


def test_a_loop_that_ends_before_its_turn_lets_go_of_the_buffers_that_were_read():
    code = """
import asyncio, time
from headrace import cuda

async def main(source):
    async with pool.lease() as stream:
        copied = pool.stats().bytes_to_device
        copy = stream.copy_to_device(source)
        # The thread that read it has put it into the loop's queue by then; the loop ends before its turn.
        while pool.stats().bytes_to_device == copied:
            time.sleep(0.0001)

pool = cuda.StreamPool(backend="sim")
for _ in range(20):
    source = bytearray(70_000)
    asyncio.run(main(source))
    source.clear()
"""
    assert run_script(code) == (0, "", "")
