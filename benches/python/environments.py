"""Where the peers' environments are: one for each requirement file in `peers/`, built by `peers.py`.

Imported by every process of a run, so it does nothing but name paths.
"""

from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "peers"
BUILT = Path(__file__).parents[2] / "build" / "peers"

# Shared by the requirement files of all arms, and no environment of its own.
BASE = "base"


def names() -> list[str]:
    """Return the environments that can be installed."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem != BASE)


def python(name: str) -> Path:
    """Return an environment's interpreter, whether or not it is there yet."""
    return BUILT / name / "bin" / "python"


def requirements(name: str) -> str:
    """Return what an environment has to hold, as text that changes when any of it does."""
    return "".join((REQUIREMENTS / f"{part}.txt").read_text() for part in (BASE, name))


def installed_mark(name: str) -> Path:
    """Return the file that an installation leaves when it is whole; it holds the requirements."""
    return BUILT / name / "installed.txt"


def is_installed(name: str) -> bool:
    """Say whether an environment holds exactly what its requirement file asks for."""
    mark = installed_mark(name)
    return mark.is_file() and mark.read_text() == requirements(name)
