"""`headrace serve` and `headrace.run`: a ready line, a drain on SIGTERM, clear errors with exit code 2."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys

import headrace as hr
import pytest

from support import WORKERS, Process, eventually, python, routing, run_script

pytestmark = pytest.mark.asyncio

READY = re.compile(r"headrace: serving (.*) on (\S+) \(instance ([0-9a-f]{16})\)")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(WORKERS)}


def serve(*arguments: str):
    return python("-m", "headrace", "serve", *arguments, env=ENVIRONMENT)


async def ready(process: Process) -> tuple[str, str]:
    """Names and address of the ready line."""
    line = await process.error_line()
    found = READY.match(line)
    assert found, line
    return found[1], found[2]


async def test_serve_says_that_it_is_ready_serves_and_drains_on_sigterm():
    with serve("cli_engines:gated") as process:
        names, address = await ready(process)
        assert names == "gated"
        async with routing(address) as router:
            stream = await router.generate("go on")
            assert await anext(stream) == "before"
            process.signal(signal.SIGTERM)
            assert "draining, 1 requests in flight" in await process.error_line()
            await eventually(lambda: router.instances()[0].state == "draining")
            assert await stream.collect() == ["after"]
            code, out, err = await process.ended()
        assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_means_now(first, second):
    with serve("cli_engines:gated") as process:
        _, address = await ready(process)
        async with hr.Router(address) as router:
            stream = await router.generate("wait for ever")
            assert await anext(stream) == "before"
            process.signal(first)
            assert "draining" in await process.error_line()
            process.signal(second)
            with pytest.raises(hr.Disconnected) as caught:
                await anext(stream)
            assert caught.value.reason == "shutdown"
            code, _, err = await process.ended()
        assert (code, err) == (0, "")


async def test_an_idle_worker_exits_at_once_on_ctrl_c():
    with serve("cli_engines:gated") as process:
        await ready(process)
        process.signal(signal.SIGINT)
        code, _, err = await process.ended()
        assert code == 0
        assert "Traceback" not in err


async def test_a_drain_that_runs_out_of_time_exits_0():
    with serve("cli_engines:gated", "--drain-timeout", "0.2") as process:
        _, address = await ready(process)
        async with hr.Router(address) as router:
            stream = await router.generate("wait for ever")
            assert await anext(stream) == "before"
            process.signal(signal.SIGTERM)
            with pytest.raises(hr.Disconnected) as caught:
                await anext(stream)
            assert caught.value.reason == "shutdown"
            code, _, err = await process.ended()
        assert code == 0
        assert "Traceback" not in err


async def test_several_engines_are_served_by_name():
    with serve("cli_engines:gated", "words=cli_engines:Model", "cli_engines:nested.echo") as process:
        names, address = await ready(process)
        assert names == "gated, nested.echo, words"
        async with routing(address) as router:
            assert await router.call("x", endpoint="nested.echo") == "x"
            assert await (await router.generate(2, endpoint="words")).collect() == [0, 1]
        process.signal(signal.SIGTERM)
        assert (await process.ended())[0] == 0


async def test_settings_reach_the_worker(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    address = f"unix:{tmp_path}/socket"
    with serve("cli_engines:gated", "--address", address, "--token-file", str(token)) as process:
        assert (await ready(process))[1] == address
        async with hr.Router(address, token="secret") as router:
            assert await (await router.generate("go on")).collect() == ["before", "after"]
        async with hr.Router(address) as router:
            with pytest.raises(hr.AuthenticationError):
                await router.generate("go on")
        process.signal(signal.SIGTERM)
        assert (await process.ended())[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cli_engines"], "module:engine"),
        ([":engine"], "module:engine"),
        (["no_such_module:engine"], "no module 'no_such_module'"),
        (["cli_engines:missing"], "has no 'missing'"),
        (["cli_engines:CONSTANT"], "no engine"),
        (["cli_engines:gated", "cli_engines:gated"], "given twice"),
        (["cli_engines:gated", "--address", "nowhere"], "host:port"),
        (["cli_engines:gated", "--address", "0.0.0.0:0"], "insecure"),
        (["cli_engines:gated", "--concurrency", "0"], "concurrency"),
        (["cli_engines:gated", "--concurrency", "many"], "concurrency"),
        (["cli_engines:gated", "--token-file", "/nonexistent"], "/nonexistent"),
        (["cli_engines:gated", "--address", "unix:/nonexistent/socket"], "cannot listen"),
        ([], "MODULE:ENGINE"),
        (["cli_engines:gated", "--no-such-option"], "no-such-option"),
    ],
)
async def test_what_cannot_be_served_exits_2_with_a_clear_message(arguments, message):
    with serve(*arguments) as process:
        code, out, err = await process.ended()
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


async def test_an_import_error_inside_the_module_keeps_its_traceback():
    with serve("cli_broken:engine") as process:
        code, _, err = await process.ended()
    assert code == 1
    assert "cli_broken.py" in err
    assert "no_such_dependency" in err


async def test_the_command_says_its_version_and_its_options():
    with python("-m", "headrace", "--version") as process:
        assert await process.ended() == (0, f"headrace {hr.__version__}\n", "")
    with python("-m", "headrace", "serve", "--help") as process:
        code, out, _ = await process.ended()
        assert code == 0
        for option in ("--address", "--concurrency", "--queue", "--drain-timeout", "--insecure"):
            assert option in out


async def test_run_blocks_until_a_signal():
    code = (
        "import headrace, cli_engines\n"
        "headrace.run(cli_engines.gated, concurrency=3)\n"
        "print('run returned')\n"
    )
    with python("-c", code, env=ENVIRONMENT) as process:
        _, address = await ready(process)
        async with routing(address) as router:
            assert await (await router.generate("go on")).collect() == ["before", "after"]
        process.signal(signal.SIGTERM)
        code, out, err = await process.ended()
        assert (code, out) == (0, "run returned\n")
        assert "Traceback" not in err


async def test_run_refuses_bad_settings_with_exceptions():
    for arguments, expected in (
        ("1", "TypeError"),
        ("cli_engines.gated, concurrency=0", "ValueError: concurrency"),
        ("cli_engines.gated, '1.2.3.4:0'", "ValueError: 1.2.3.4:0 is not a loopback address"),
    ):
        script = f"import headrace, cli_engines; headrace.run({arguments})"
        code, _, err = await asyncio.to_thread(run_script, script)
        assert code == 1
        assert expected in err.splitlines()[-1]


async def test_the_installed_command_is_the_same():
    command = os.path.join(os.path.dirname(sys.executable), "headrace")
    process = Process([command, "--version"])
    try:
        assert (await process.ended())[1] == f"headrace {hr.__version__}\n"
    finally:
        process.end()
