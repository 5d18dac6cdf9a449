"""Everything that wants a GPU, in one command: what is there, the tests, the figures.

    python benches/gpu/run.py [--wheels FOLDER] [--short] [--out FILE]

A machine with a GPU may have another Python than the one that built, and no registry: the folder has a wheel
for every CPython (abi3) and those of the packages that the tests need (``make gpu-wheels`` fills it). What is
missing is installed from there under ``build/gpu/site``; what is installed already is used as it is. The
figures go to ``benches/results/gpu-<device>.md``, and nowhere else unless ``--out`` says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "gpu" / "site"
PACKAGES = {
    "msgspec": "msgspec",
    "numpy": "numpy",
    "pytest": "pytest",
    "pytest_asyncio": "pytest-asyncio",
    "uvloop": "uvloop",
}
"""What the tests and the figures need beside Headrace: modules, and what brings them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--wheels", type=Path, help="a folder with wheels; default: what is installed is used"
    )
    parser.add_argument(
        "--short", action="store_true", help="proves that everything runs; no figures to keep"
    )
    parser.add_argument("--out", type=Path, help="where the figures go")
    parser.add_argument("--device", type=int, default=0, help="the number of the device")
    arguments = parser.parse_args()
    if arguments.wheels is not None:
        install(arguments.wheels.resolve())
    environment = {**os.environ, "HEADRACE_REQUIRE_CUDA": "1", "PYTHONPATH": os.pathsep.join(paths())}
    print(f"Python {platform.python_version()}, {platform.platform()}", flush=True)
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    failed = subprocess.run(tests, cwd=ROOT, env=environment).returncode
    bench = [sys.executable, str(ROOT / "benches" / "gpu" / "report.py"), "--device", str(arguments.device)]
    bench += ["--short"] if arguments.short else []
    bench += ["--out", str(arguments.out.resolve())] if arguments.out is not None else []
    return failed or subprocess.run(bench, cwd=ROOT, env=environment).returncode


def paths() -> list[str]:
    """Where the packages are that were installed for this."""
    known = os.environ.get("PYTHONPATH")
    return [str(SITE), *([known] if known else [])]


def install(wheels: Path) -> None:
    """Install the wheel, and of the other packages what is missing, without a registry."""
    own = sorted(wheels.glob("headrace-*abi3*.whl"))
    if not own:
        sys.exit(f"{wheels} has no headrace-*abi3*.whl; make gpu-wheels puts one there")
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    pip += ["--upgrade", "--target", str(SITE), "--find-links", str(wheels)]
    subprocess.run([*pip, "--no-deps", str(own[-1])], check=True)
    if missing:
        subprocess.run([*pip, *missing], check=True)


if __name__ == "__main__":
    sys.exit(main())
