"""What kind of files are in a folder? A real model behind a batcher, with a progress bar.

Classifies the files of a folder (by default some of Python's own library) with Magika's model, first one
after the other and then through a `headrace.Batcher`, which has a thread of its own run the model on several
files at once while the loop reads the next ones. Prints what was found, and how much faster that was here.
`--short` takes fewer files.
"""

import argparse
import asyncio
import itertools
import random
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import headrace as hr
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from magika_model import FileClassifier, Label, load

FILES, FILES_SHORT = 1000, 200
BATCH = 4  # Where this model gains most; `magika_model.py` says why.
IN_FLIGHT = 64  # Files that are read ahead of the model.


def files_below(folder: Path, most: int) -> list[Path]:
    """Files from all over a folder, the same ones each time."""
    found = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    random.Random(0).shuffle(found)
    files = (path for path in found if path.is_file() and not path.is_symlink())
    return list(itertools.islice(files, most))


def one_by_one(model: FileClassifier, paths: list[Path]) -> tuple[list[str], float]:
    """Labels of the files, and how long that took in seconds."""
    names: list[str] = []
    began = time.perf_counter()
    for path in paths:
        data = model.sample(path)
        label = model.without_model(data) or model.classify([model.features(data)])[0]
        names.append(label.name)
    return names, time.perf_counter() - began


async def batched(
    model: FileClassifier, paths: list[Path], progress: Progress
) -> tuple[list[str], float, Any]:
    """The same through a batcher; and the batcher's own figures."""
    names = [""] * len(paths)
    bar = progress.add_task("in batches", total=len(paths))
    waiting = iter(enumerate(paths))

    async def read(batcher: hr.Batcher[Any, Label]) -> None:
        for index, path in waiting:
            data = model.sample(path)
            label = model.without_model(data) or await batcher.submit(model.features(data))
            names[index] = label.name
            progress.advance(bar)

    began = time.perf_counter()
    async with hr.Batcher(model.classify, max_batch_size=BATCH, queue_capacity=IN_FLIGHT) as batcher:
        await asyncio.gather(*(read(batcher) for _ in range(IN_FLIGHT)))
        took = time.perf_counter() - began
        return names, took, batcher.stats()


def main() -> int:
    """Classify, print, and fail if a batch changes what a file is."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    arguments.add_argument("--short", action="store_true", help="take fewer files")
    options = arguments.parse_args()
    console = Console()
    paths = files_below(options.folder, FILES_SHORT if options.short else FILES)
    if not paths:
        console.print(f"There are no files in {options.folder}.")
        return 2
    model = load()
    model.classify([model.features(b"a first run takes longer " * 100)])
    alone, alone_s = one_by_one(model, paths)
    with Progress(console=console, transient=True) as progress:
        together, together_s, stats = asyncio.run(batched(model, paths, progress))
    if alone != together:
        console.print("A batch has changed what a file is.")
        return 1
    table = Table("kind", "files", title=f"{len(paths)} files")
    for name, count in Counter(together).most_common(8):
        table.add_row(name, str(count))
    console.print(table)
    console.print(
        f"one at a time {len(paths) / alone_s:.0f} files/s, through the batcher "
        f"{len(paths) / together_s:.0f} files/s: {alone_s / together_s:.2f} times as fast, "
        f"in batches of {stats.avg_batch_size or 0:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
