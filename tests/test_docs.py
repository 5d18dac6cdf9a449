"""The first example of the README and the example programs do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, timeout=60)


def test_the_first_example_of_the_readme_runs_as_it_stands():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 12
    done = run(["-c", block[1]])
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\nworld\n", "")


def test_the_quickstart_prints_what_its_engine_yields():
    done = run([str(ROOT / "examples" / "quickstart.py")])
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\nworld\n", "")


@pytest.mark.parametrize("extra", [[], ["serve"]])
def test_the_command_explains_itself(extra):
    done = run(["-m", "headrace", *extra, "--help"])
    assert done.returncode == 0
    assert "serve" in done.stdout
