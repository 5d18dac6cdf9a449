"""However a process with open streams ends, it does: promptly, with the right exit code, without a word.

Each script runs in an interpreter of its own, on both loops.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from support import GUARD, python, run_script, serving

PRELUDE = """
import asyncio, gc, os, signal, sys, threading, time
import headrace as hr

# A parent that runs in the background may have handed down an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop
else:
    new_event_loop = asyncio.SelectorEventLoop

async def endless(request):
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0.001)

async def bytes_(request):
    while True:
        yield bytes(100_000)

def blocks(request):
    time.sleep(60)

def sync_endless(request):
    while True:
        yield 1

async def open_streams():
    worker = await hr.serve({"endless": endless, "bytes": bytes_, "blocks": blocks, "sync": sync_endless})
    router = hr.Router(worker.address)
    streams = [await router.generate(None, endpoint=each) for each in ("endless", "bytes", "sync")]
    for stream in streams:
        await anext(stream)
    return worker, router, streams

def run(main):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
"""

both_loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def ends(loop: str, code: str) -> tuple[int, str, str]:
    exit_code, out, err = run_script(PRELUDE + code, loop)
    assert "panicked" not in err, err
    return exit_code, out, err


QUIET = {
    "the main coroutine returns with streams open": """
async def main():
    global kept
    kept = await open_streams()
run(main())
""",
    "the main coroutine returns and everything is dropped": """
async def main():
    await open_streams()
run(main())
""",
    "a task still reads": """
async def main():
    global kept
    kept = await open_streams()
    async def read():
        async for _ in kept[2][0]: pass
    asyncio.ensure_future(read())
    await asyncio.sleep(0.01)
run(main())
""",
    "streams are part of a cycle": """
async def main():
    class Cycle: pass
    cycle = Cycle()
    cycle.self, cycle.kept = cycle, await open_streams()
    gc.disable()
run(main())
""",
    "streams are dropped after their loop has closed": """
async def main():
    return await open_streams()
kept = run(main())
del kept
gc.collect()
""",
    "a synchronous engine runs": """
async def main():
    worker, router, _ = await open_streams()
    call = asyncio.ensure_future(router.call(None, endpoint="blocks"))
    while worker.stats()["running"] < 4:
        await asyncio.sleep(0.001)
    call.cancel()
run(main())
""",
    "one loop after the other": """
async def main():
    worker, router, streams = await open_streams()
    return await anext(streams[0])
for _ in range(5):
    assert run(main()) == 1
""",
    "headrace is only imported": "",
    "a router is made and never used": "router = hr.Router('127.0.0.1:1')",
    "a router never finds its worker": """
async def main():
    router = hr.Router("127.0.0.1:1")
    asyncio.ensure_future(router.wait_for_instances(1, timeout=60))
    await asyncio.sleep(0.05)
run(main())
""",
}


@both_loops
@pytest.mark.parametrize("case", QUIET)
def test_a_process_ends_quietly_with_exit_code_0_when(case, loop):
    assert ends(loop, QUIET[case]) == (0, "", "")


@both_loops
@pytest.mark.parametrize("end", ["", "loop.run_until_complete(loop.shutdown_asyncgens())", "loop.close()"])
def test_a_loop_that_is_not_ended_with_care_does_not_hold_up_exit(end, loop):
    code, _, err = ends(
        loop, f"loop = new_event_loop(); kept = loop.run_until_complete(open_streams()); {end}"
    )
    assert code == 0
    # asyncio itself may mention tasks and generators that never ended; that is all.
    assert "Traceback" not in err, err
    assert "headrace/" not in err, err


@both_loops
def test_a_loop_in_a_daemon_thread_does_not_hold_up_exit(loop):
    script = """
ready = threading.Event()
async def main():
    global kept
    kept = await open_streams()
    ready.set()
    async for _ in kept[2][0]: pass
threading.Thread(target=lambda: run(main()), daemon=True).start()
assert ready.wait(20)
"""
    code, _, _ = ends(loop, script)
    assert code == 0


@both_loops
def test_an_exception_is_the_only_thing_shown(loop):
    script = """
async def main():
    global kept
    kept = await open_streams()
    raise LookupError("mine")
run(main())
"""
    code, _, err = ends(loop, script)
    assert code == 1
    assert err.splitlines()[-1] == "LookupError: mine"
    assert err.count("Traceback") == 1


@both_loops
def test_sys_exit_keeps_its_code(loop):
    script = """
async def main():
    global kept
    kept = await open_streams()
    sys.exit(7)
run(main())
"""
    assert ends(loop, script) == (7, "", "")


@both_loops
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_ctrl_c_ends_a_reading_process_as_it_ends_any(loop):
    script = """
async def main():
    global kept
    kept = await open_streams()
    print("ready", flush=True)
    async for _ in kept[2][0]: pass
run(main())
"""
    code, _, err = await interrupted(script, loop)
    assert code == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert "panicked" not in err
    assert "Exception ignored" not in err


@both_loops
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_ctrl_c_during_a_synchronous_engine_does_not_wait_for_it(loop):
    script = """
async def main():
    worker, router, _ = await open_streams()
    call = asyncio.ensure_future(router.call(None, endpoint="blocks"))
    while worker.stats()["running"] < 4:
        await asyncio.sleep(0.001)
    print("ready", flush=True)
    await call
run(main())
"""
    code, _, err = await interrupted(script, loop)
    assert code == -signal.SIGINT
    assert "panicked" not in err


async def interrupted(script: str, loop: str) -> tuple[int, str, str]:
    with python("-c", PRELUDE + script, loop) as process:
        assert await process.line() == "ready"
        process.signal(signal.SIGINT)
        return await process.ended()


@both_loops
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_busy_loop_can_be_interrupted(loop):
    """Ctrl-C while items keep coming without a pause, on both sides."""
    script = """
async def flood(request):
    while True:
        yield 1

async def main():
    async with hr.serve(flood) as worker, hr.Router(worker.address) as router:
        print("ready", flush=True)
        async for _ in await router.generate(None): pass
run(main())
"""
    code, _, _ = await interrupted(script, loop)
    assert code == -signal.SIGINT


FORK = """
def in_child(check):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException as error:
            print("child:", type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        EXIT
    deadline = time.monotonic() + 10
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.005)

def refused(action):
    try:
        action()
    except hr.ForkError as error:
        assert "fork" in str(error)
    else:
        raise AssertionError(f"not refused: {action}")
"""

FORK_USES: dict[str, Any] = {
    "touches nothing": "pass",
    "uses the router": "refused(lambda: router.generate(None, endpoint='endless'))",
    "calls": "refused(lambda: router.call(None, endpoint='endless'))",
    "asks the router": "refused(router.stats); refused(router.instances)",
    "asks the worker": "refused(worker.stats)",
    "reads a stream": "refused(lambda: next(streams[0]))",
    "kills a stream": "refused(streams[0].kill)",
    "closes the router": "refused(lambda: router.aclose().send(None))",
    "makes a router on a new loop": """
    async def new(): hr.Router("127.0.0.1:1")
    refused(lambda: asyncio.run(new()))""",
    "serves on a new loop": """
    async def new(): await hr.serve(endless)
    refused(lambda: asyncio.run(new()))""",
    "drops everything": """
    global kept, worker, router, streams
    kept = worker = router = streams = None
    gc.collect()""",
}


@both_loops
@pytest.mark.parametrize("exits", ["sys.exit()", "os._exit(0)"])
@pytest.mark.parametrize("use", FORK_USES)
def test_a_forked_child_is_refused_or_exits_cleanly_and_its_parent_goes_on(use, exits, loop):
    script = f"""
{FORK.replace("EXIT", exits)}
loop = new_event_loop()
asyncio.set_event_loop(loop)
kept = worker, router, streams = loop.run_until_complete(open_streams())

def check():
    {FORK_USES[use]}

print("child", in_child(check))

async def go_on():
    for stream in streams:
        for _ in range(200):
            await anext(stream)
        stream.kill()
    assert await anext(await router.generate(None, endpoint="endless", timeout=10)) == 0
    # What wakes the loop from another thread still does.
    async with hr.Router(worker.address) as another:
        await another.wait_for_instances(1, timeout=10)
        assert await anext(await another.generate(None, endpoint="endless", timeout=10)) == 0
    await router.aclose()
    await worker.aclose()

loop.run_until_complete(asyncio.wait_for(go_on(), 15))
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
"""
    assert ends(loop, script) == (0, "child 0\n", "")


@both_loops
def test_a_process_that_forks_before_it_uses_headrace_may_use_it_in_the_child(loop):
    script = """
child = os.fork()
async def main():
    worker, router, streams = await open_streams()
    return await anext(streams[0])
assert run(main()) == 1
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("both")
"""
    assert ends(loop, script) == (0, "both\n", "")


@pytest.mark.asyncio
async def test_a_subprocess_can_be_started_beside_open_streams():
    async def count(request):
        for number in range(50):
            yield number
            await asyncio.sleep(0.001)

    async with serving(count) as (_, router):
        stream = await router.generate(None)
        process = await asyncio.create_subprocess_exec("true")
        assert await asyncio.wait_for(process.wait(), GUARD) == 0
        assert await stream.collect() == list(range(50))
