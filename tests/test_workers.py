"""Worker processes: each serves at an address of its own what it imports by name; what cannot be served is
refused at once. (`test_worker_restarts.py` has crashes and restarts, `test_worker_signals.py` the end.)
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import headrace as hr
import pytest
from headrace._addresses import Addresses

from pool import Pool, Starts, run_pool, serve_pool
from support import WORKERS, eventually, routing, run_script

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])

WHO = "pool_engines:who"


async def stop(pool: Pool) -> str:
    pool.signal(signal.SIGTERM)
    code, out, err = await pool.ended()
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    return err


async def asked(pool: Pool) -> list[dict]:
    """What the engine `who` of each worker says, in the order of their numbers."""
    async with routing(pool.addresses) as router:
        return [await router.call("x", instance=address) for address in pool.addresses]


async def test_each_worker_is_a_process_with_an_address_and_a_number():
    async with serve_pool(WHO, workers=3) as pool:
        await pool.ready(3)
        assert len(set(pool.addresses)) == 3
        answers = await asked(pool)
        assert [answer["pid"] for answer in answers] == [pool.workers[n].pid for n in range(3)]
        assert [answer["index"] for answer in answers] == ["0", "1", "2"]
        assert {answer["parent"] for answer in answers} == {pool.process.pid}
        assert {worker.names for worker in pool.workers.values()} == {"who"}
        await stop(pool)


async def test_several_engines_are_served_by_every_worker():
    async with serve_pool(WHO, "words=pool_engines:count") as pool:
        await pool.ready(2)
        assert pool.workers[0].names == "who, words"
        async with routing(pool.addresses) as router:
            for address in pool.addresses:
                stream = await router.generate(2, endpoint="words", instance=address)
                assert await stream.collect() == [0, 1]
        await stop(pool)


def free_ports() -> int:
    """The first of two consecutive ports that nobody uses."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            first = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", first + 1))
            except (OSError, OverflowError):
                continue
            return first


async def test_a_port_is_the_first_of_consecutive_ones():
    first = free_ports()
    async with serve_pool(WHO, "--address", f"127.0.0.1:{first}") as pool:
        await pool.ready(2)
        assert pool.addresses == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
        assert len(await asked(pool)) == 2
        await stop(pool)


async def test_socket_files_are_numbered_and_go_even_when_a_worker_was_killed(tmp_path):
    path = tmp_path / "socket"
    async with serve_pool(WHO, "--address", f"unix:{path}") as pool:
        await pool.ready(2)
        assert pool.addresses == [f"unix:{path}.0", f"unix:{path}.1"]
        assert [answer["index"] for answer in await asked(pool)] == ["0", "1"]
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await pool.line("was ended by SIGKILL")
        await stop(pool)
    assert list(tmp_path.iterdir()) == []


async def test_the_socket_of_another_worker_is_left_alone(tmp_path):
    async def echo(request):
        return request

    address = f"unix:{tmp_path}/socket"
    async with hr.serve(echo, f"{address}.1") as worker, routing(worker.address) as router:
        async with serve_pool(WHO, "--address", address) as pool:
            code, _, err = await pool.ended()
            assert code == 2
            assert "another worker listens there" in err
        assert await router.call(1) == 1


async def test_a_held_port_is_for_workers_only():
    async def echo(request):
        return request

    with Addresses("127.0.0.1:0", 2) as addresses:
        assert len(set(addresses.each)) == 2
        for address in addresses.each:
            with socket.socket() as another, pytest.raises(OSError, match="in use"):
                another.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            for _ in range(2):
                async with hr.serve(echo, address), routing(address) as router:
                    assert await router.call(1) == 1
    with Addresses("[::1]:0", 1) as addresses:
        assert addresses.each[0].startswith("[::1]:")
    with pytest.raises(OSError, match="cannot resolve"):
        Addresses("no-such-host.invalid:0", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool_engines"], "module:engine"),
        (["no_such_module:engine"], "no module 'no_such_module'"),
        (["pool_engines:missing"], "has no 'missing'"),
        (["cli_engines:CONSTANT"], "no engine"),
        ([WHO, WHO], "given twice"),
        ([WHO, "--address", "nowhere"], "host:port"),
        ([WHO, "--address", "0.0.0.0:0"], "insecure"),
        ([WHO, "--address", "127.0.0.1:65535"], "65535"),
        ([WHO, "--address", "unix:/nonexistent/socket"], "cannot listen"),
        ([WHO, "--concurrency", "0"], "concurrency"),
    ],
)
async def test_what_cannot_be_served_exits_2_with_one_clear_message(arguments, message):
    async with serve_pool(*arguments) as pool:
        code, out, err = await pool.ended()
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if message in line and line.startswith("headrace: ")]
    assert "Traceback" not in err


@pytest.mark.parametrize("workers", [0, -1, 100_000])
async def test_the_number_of_workers_is_checked(workers):
    async with serve_pool(WHO, workers=workers) as pool:
        code, _, err = await pool.ended()
    assert code == 2
    assert err == f"headrace: workers must be 1 to 1024, not {workers}\n"


async def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "start").write_text("serve")
        env = {"POOL_PIDS": str(tmp_path / "pids"), "POOL_START": str(tmp_path / "start")}
        async with serve_pool("pool_starts:pid", "--address", f"127.0.0.1:{port}", env=env) as pool:
            code, _, err = await pool.ended()
    assert code == 2
    assert err == f"headrace: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert not (tmp_path / "pids").exists()


async def test_an_import_error_stops_at_once_and_keeps_its_traceback():
    async with serve_pool("cli_broken:engine") as pool:
        code, _, err = await pool.ended()
    assert code == 1
    assert "cli_broken.py" in err
    assert "no_such_dependency" in err
    assert err.count("Traceback") == 1
    assert "starts again" not in err


async def test_workers_that_fail_together_are_told_of_once(tmp_path):
    starts = Starts(tmp_path, "wait")
    async with serve_pool("pool_starts:pid", env=starts.env) as pool:
        await eventually(lambda: len(starts.pids) == 2)
        # Both have ended when it looks next.
        pool.signal(signal.SIGSTOP)
        starts.how("raise")
        await eventually(lambda: all(_has_ended(pid) for pid in starts.pids))
        pool.signal(signal.SIGCONT)
        code, _, err = await pool.ended()
    assert code == 1
    assert err.count("cannot serve") == err.count("Traceback") == 1


def _has_ended(pid: int) -> bool:
    """Whether only its parent knows of it still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def arguments_and_environment(pid: int) -> str:
    return "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ"))


async def test_the_token_is_in_no_list_of_processes(tmp_path):
    (tmp_path / "token").write_text("quite a secret\n")
    async with serve_pool(WHO, "--token-file", str(tmp_path / "token")) as pool:
        await pool.ready(2)
        async with hr.Router(pool.addresses, token="quite a secret") as router:
            await router.wait_for_instances(2)
        for pid in [pool.process.pid, *pool.pids]:
            assert "quite a secret" not in arguments_and_environment(pid)
        await stop(pool)


def script(call: str) -> str:
    return f"import headrace, pool_engines, cli_engines\nheadrace.run({call})\n"


@pytest.mark.parametrize(
    "engine",
    ["'pool_engines:who'", "pool_engines.who", "{'who': 'pool_engines:who'}", "{'who': pool_engines.who}"],
)
async def test_run_takes_a_name_and_what_can_be_imported_by_its_own(engine):
    code = script(f"{engine}, workers=2, concurrency=3") + "print('run returned')"
    async with run_pool("-c", code) as pool:
        await pool.ready(2)
        assert [answer["index"] for answer in await asked(pool)] == ["0", "1"]
        pool.signal(signal.SIGTERM)
        assert (await pool.ended())[:2] == (0, "run returned\n")


async def test_settings_that_have_a_name_reach_the_workers():
    code = script("pool_engines.typed, workers=2, request_type=pool_engines.Wanted")
    async with run_pool("-c", code) as pool:
        await pool.ready(2)
        async with routing(pool.addresses) as router:
            for address in pool.addresses:
                assert await router.call({"name": "x"}, instance=address) == ["Wanted", "x"]


async def test_run_refuses_what_worker_processes_cannot_import():
    for call, expected in (
        ("lambda request: request, workers=2", "module:engine"),
        ("type('Local', (), {'generate': print})(), workers=2", "module:engine"),
        ("{'a': 'pool_engines:who', 'b': lambda request: request}, workers=2", "module:engine"),
        ("cli_engines.Model().generate, workers=2", "module:engine"),
        ("pool_engines.who, workers=2, request_type=list[int]", "request_type="),
        ("pool_engines.who, workers=2, no_such_setting=1", "no_such_setting"),
        ("pool_engines.who, workers=2, queue=-1", "queue"),
        ("pool_engines.who, workers=0", "workers must be"),
    ):
        code, _, err = await asyncio.to_thread(run_script, script(call))
        last = err.splitlines()[-1]
        assert code == 1
        assert expected in last, last
        assert last.startswith(("ValueError: ", "headrace._target.UsageError: ", "TypeError: "))


async def test_run_with_one_worker_takes_a_name_and_serves_itself():
    async with run_pool("-c", script("'pool_engines:count'")) as pool:
        line = await pool.next_line()
        address = line.split(" on ")[1].split(" ")[0]
        assert line.endswith("press Ctrl-C to drain and stop")
        async with routing(address) as router:
            assert await (await router.generate(2)).collect() == [0, 1]


async def test_a_program_without_a_guard_is_told_so_instead_of_starting_ever_more_processes():
    async with run_pool(str(WORKERS / "pool_runs.py")) as pool:
        code, _, err = await pool.ended()
    assert code == 1
    assert 'if __name__ == "__main__":' in err


async def test_workers_run_the_package_of_their_parent(tmp_path):
    # A folder of the same name lies where the command is given.
    (tmp_path / "headrace").mkdir()
    (tmp_path / "headrace" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    (tmp_path / "beside.py").write_text("async def engine(request):\n    return request\n")
    command = os.path.join(os.path.dirname(sys.executable), "headrace")
    async with run_pool(command, "serve", "beside:engine", "--workers", "2", cwd=tmp_path) as pool:
        await pool.ready(2)
        await stop(pool)


async def test_workers_find_what_the_parent_finds(tmp_path):
    # The engine lies beside the program, which is started from elsewhere, and looks at its arguments.
    (tmp_path / "beside.py").write_text("import sys\n\nasync def engine(request):\n    return sys.argv\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import headrace\nif __name__ == '__main__':\n    headrace.run('beside:engine', workers=2)\n"
    )
    async with run_pool(str(program), "argument", cwd="/") as pool:
        await pool.ready(2)
        async with routing(pool.addresses) as router:
            assert await router.call(None) == [str(program), "argument"]
