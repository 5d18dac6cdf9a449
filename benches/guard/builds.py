"""What is counted: this tree, and the merge base where there is no record to compare with.

The merge base is built in a worktree of its own, with this tree's `hot`, so that both sides run the same
cases.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counting import Build, GuardError, run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "guard"
MAIN_BRANCHES = ("origin/main", "main")


def head() -> Build:
    """Return this tree's release build: the wheel that `make wheel` made, and `hot`, built here."""
    wheels = list((ROOT / "build" / "wheels" / "release").glob("*.whl"))
    if len(wheels) != 1:
        raise GuardError("there is no release wheel under build/wheels: run `make guard`")
    return Build(_unpack(wheels[0], WORK / "head"), _hot(ROOT, WORK / "head"), _steady())


def merge_base() -> str:
    """Return the commit that this tree is compared with.

    That is where it left the main branch. On the main branch it is the commit before, or the last one if
    files have been changed since.
    """
    for branch in MAIN_BRANCHES:
        base = _git("merge-base", "HEAD", branch)
        if base is None:
            continue
        if base != _git("rev-parse", "HEAD") or _git("status", "--porcelain", "--untracked-files=no"):
            return base
        before = _git("rev-parse", "--verify", "--quiet", "HEAD~1")
        if before is not None:
            return before
    raise GuardError(
        f"no merge base with {' or '.join(MAIN_BRANCHES)}: the history is not here (git fetch --unshallow)"
    )


def recorded_at(commit: str, figures: Path) -> str | None:
    """Return the text of a file of this tree as it was in a commit, if it was there."""
    return _git("show", f"{commit}:{figures.relative_to(ROOT)}")


@contextmanager
def base(commit: str) -> Iterator[Build]:
    """Build a commit; its worktree is there while entered."""
    tree, out = WORK / "tree", WORK / "base"
    _remove(tree)
    run(["git", "worktree", "add", "--detach", "--quiet", str(tree), commit], folder=ROOT)
    try:
        shutil.rmtree(out, ignore_errors=True)
        maturin = Path(sys.executable).with_name("maturin")
        wheel = [str(maturin), "build", "--release", "--quiet", "--out", str(out / "wheels")]
        run(wheel, _cargo_environment(), tree)
        site = _unpack(next((out / "wheels").glob("*.whl")), out)
        yield Build(site, _hot_of_base(tree, out), _steady())
    finally:
        _remove(tree)


def _hot_of_base(tree: Path, out: Path) -> Path | None:
    """Build this tree's `hot` over the base's crates, or else the base's own, if it has one."""
    own = out / "own"
    shutil.copytree(tree / "benches", own)
    manifest = (tree / "Cargo.toml").read_text()
    shutil.rmtree(tree / "benches" / "rust", ignore_errors=True)
    shutil.copytree(ROOT / "benches" / "rust", tree / "benches" / "rust")
    shutil.copy(ROOT / "benches" / "Cargo.toml", tree / "benches" / "Cargo.toml")
    (tree / "Cargo.toml").write_text(_with_dependencies_of(manifest, (ROOT / "Cargo.toml").read_text()))
    try:
        return _hot(tree, out)
    except GuardError as why:
        print(f"the merge base cannot build this tree's hot, so its own is tried: {why}", file=sys.stderr)
    shutil.rmtree(tree / "benches")
    shutil.copytree(own, tree / "benches")
    (tree / "Cargo.toml").write_text(manifest)
    try:
        return _hot(tree, out)
    except GuardError:
        return None


def _with_dependencies_of(manifest: str, newer: str) -> str:
    """Return a workspace's manifest with what `newer` lists under its dependencies and it does not."""
    known = tomllib.loads(manifest)["workspace"]["dependencies"]
    section = newer.partition("[workspace.dependencies]\n")[2].partition("\n[")[0]
    missing = [
        line for line in section.splitlines() if (name := re.match(r"[\w-]+", line)) and name[0] not in known
    ]
    heading = "[workspace.dependencies]\n"
    return manifest.replace(heading, heading + "".join(f"{line}\n" for line in missing))


def _hot(tree: Path, out: Path) -> Path:
    """Build `hot` in a tree, and keep a copy: the next build of another tree takes its place."""
    command = ["cargo", "build", "--release", "--quiet", "-p", "headrace-benches", "--bin", "hot"]
    run(command, _cargo_environment(), tree)
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(Path(_cargo_environment()["CARGO_TARGET_DIR"], "release", "hot"), out / "hot"))


def _cargo_environment() -> dict[str, str]:
    """Return an environment in which all trees share what they have in common, the crates of others."""
    return {"CARGO_TARGET_DIR": str(ROOT / "target"), **os.environ}


def _unpack(wheel: Path, out: Path) -> Path:
    """Install a wheel into a folder of its own, compiled."""
    site = out / "site"
    shutil.rmtree(site, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-deps", "--no-index", "--target", str(site), str(wheel)])
    return site


def _steady() -> Path:
    """Build the clock that is preloaded."""
    library = WORK / "steady.so"
    WORK.mkdir(parents=True, exist_ok=True)
    run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "steady.c")])
    return library


def _remove(tree: Path) -> None:
    """Forget a worktree, also one that an interrupted run has left."""
    shutil.rmtree(tree, ignore_errors=True)
    run(["git", "worktree", "prune"], folder=ROOT)


def _git(*arguments: str) -> str | None:
    """Return what git prints, or nothing where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
