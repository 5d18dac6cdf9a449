"""What the README shows of two processes works as it stands. (`test_docs.py` has the other examples.)"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from support import python

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def block(language: str, holding: str) -> str:
    (found,) = [each for each in blocks(language) if holding in each]
    return found


async def test_the_example_of_two_processes_works(tmp_path):
    (tmp_path / "shout.py").write_text(block("python", "async def shout"))
    client = block("python", 'hr.Router("127.0.0.1:7411")')
    assert "headrace serve shout:shout --address 127.0.0.1:7411" in README.read_text()
    # Any free port, so that nothing else on the machine is in the way.
    with python("-m", "headrace", "serve", "shout:shout", cwd=tmp_path) as worker:
        ready = await worker.error_line()
        address = ready.split(" on ")[1].split(" ")[0]
        with python("-c", client.replace("127.0.0.1:7411", address)) as process:
            assert await process.ended() == (0, "ONE\nWORD\nAT\nA\nTIME\n", "")
        worker.signal(signal.SIGTERM)
        assert (await worker.ended())[0] == 0
