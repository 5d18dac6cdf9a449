"""What figures depend on besides this repository, as a key: they are comparable within one key only.

The release of an interpreter is not enough: how it was built makes several percent.
"""

import hashlib
import importlib.metadata
import platform
import subprocess


def key() -> str:
    """Return everything that compiles, interprets or copies what is counted, and the architecture."""
    build = " ".join((*platform.python_build(), platform.python_compiler()))
    parts = [
        _says("rustc", "--version"),
        f"CPython {platform.python_version()} (build {hashlib.sha256(build.encode()).hexdigest()[:8]})",
        *(f"{package} {importlib.metadata.version(package)}" for package in ("msgspec", "uvloop")),
        " ".join(platform.libc_ver()),
        platform.machine(),
    ]
    return ", ".join(parts)


def notes() -> dict[str, str]:
    """Return what is worth knowing of a record and changes no figure."""
    return {"valgrind": _says("valgrind", "--version")}


def _says(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
