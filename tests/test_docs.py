"""The first example of the README and the example programs do what they say, and the tests that documents
name exist.
"""

from __future__ import annotations

import re
import subprocess
import sys
import wave
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


def test_the_live_audio_example_hears_what_was_recorded(tmp_path):
    done = run([str(ROOT / "examples" / "live_audio.py")])
    heard = [line.split() for line in done.stdout.splitlines()]
    events = [(float(words[0]), words[-1]) for words in heard[:-1]]
    spoken = [(0.5, "begins"), (1.2, "ends"), (1.8, "begins"), (2.2, "ends"), (2.8, "begins"), (3.4, "ends")]
    assert events == spoken
    assert done.stdout.endswith("3 utterances, 1.7 s of speech in 4.0 s\n")
    assert (done.returncode, done.stderr) == (0, "")
    # What it does not understand ends the call with the iterator's own error.
    stereo = tmp_path / "stereo.wav"
    with wave.open(str(stereo), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
    done = run([str(ROOT / "examples" / "live_audio.py"), str(stereo)])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ValueError: {stereo} is not mono, 16 bit, 16000 Hz"


@pytest.mark.parametrize("extra", [[], ["serve"]])
def test_the_command_explains_itself(extra):
    done = run(["-m", "headrace", *extra, "--help"])
    assert done.returncode == 0
    assert "serve" in done.stdout


def test_every_test_that_proves_a_promise_exists():
    section = (ROOT / "ARCHITECTURE.md").read_text().split("\n## Promises\n")[1].split("\n## ")[0]
    rows = [line.strip("|").rsplit("|", 1)[-1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 25
    for row in rows:
        names = 0
        source = None
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith((".py", ".rs")):
                folder = ROOT / ("tests" if name.endswith(".py") else "rust/core/tests")
                source = (folder / name).read_text()
                continue
            assert source is not None, f"no file for {name}"
            assert re.search(rf"\b(def|fn) {name}\(", source), f"there is no test {name}"
            names += 1
        assert names, f"nothing proves {row}"


def test_the_example_of_overlapping_streams_runs_without_a_gpu_and_says_why_there_is_none():
    done = run([str(ROOT / "examples" / "cuda_overlap.py"), "8"])
    assert (done.returncode, done.stderr) == (0, "")
    where, times = done.stdout.splitlines()
    assert re.match(r"on .+|simulated, since the CUDA driver library \(libcuda\) was not found", where)
    assert re.match(r"1 stream: \d+ ms, 4 streams: \d+ ms, [\d.]+ times as fast", times)
