"""What kind of file some bytes are, by Magika's model, many files in one run of it.

The package magika brings the model and its settings, and a class that looks at files one after the
other. Here onnxruntime runs the same model on arrays, so that a batch of files is one run. The labels
are those that `Magika()` gives in its default mode.

On a CPU, do not expect much of large batches. One file is a convolution of 0.7 billion operations: it
keeps a core busy by itself, with no weights to wait for. A batch gains where it gives several threads
work of their own (1.15 times as many files a second, for 4 files and 2 threads), and from 16 files on
the results between the layers no longer fit the cache, which costs as much again.
"""

import json
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
from numpy.typing import NDArray

THREADS = 2

ort: Any = onnxruntime  # The package ships no types.


class Label(NamedTuple):
    """What a file is: Magika's name for it, such as "python", and how sure the model is, 0 to 1."""

    name: str
    score: float


class FileClassifier:
    """Magika's model and settings; `load` makes one. Any number of threads may use it."""

    def __init__(self, model: Path, config: dict[str, Any], kinds: dict[str, Any], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins for its next share of work takes a core from whoever makes that work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        ort.disable_telemetry_events()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        if config["mid_size"] or config["use_inputs_at_offsets"]:
            raise ValueError(f"{model} takes features other than the first and the last bytes of a file")
        self._first_bytes: int = config["beg_size"]
        self._last_bytes: int = config["end_size"]
        self._block_bytes: int = config["block_size"]
        self._bytes_min: int = config["min_file_size_for_dl"]
        self._padding: int = config["padding_token"]
        self._names: list[str] = config["target_labels_space"]
        threshold = config["medium_confidence_threshold"]
        self._thresholds = [config["thresholds"].get(name, threshold) for name in self._names]
        self._sure = [config["overwrite_map"].get(name, name) for name in self._names]
        self._unsure = ["txt" if kinds[name]["is_text"] else "unknown" for name in self._sure]

    def sample(self, path: Path) -> bytes:
        """The bytes of the file that count, which are its first and its last block: at most 8 KiB.

        Raises OSError if it cannot be read.
        """
        with path.open("rb") as file:
            data = file.read(2 * self._block_bytes)
            if len(data) == 2 * self._block_bytes:
                file.seek(-self._block_bytes, 2)
                data = data[: self._block_bytes] + file.read(self._block_bytes)
        return data

    def without_model(self, data: bytes) -> Label | None:
        """What needs no model, as there are fewer than 8 bytes or little but white space; else None."""
        if not data:
            return Label("empty", 1.0)
        block = data[: self._block_bytes]
        if min(len(data), len(block.lstrip())) >= self._bytes_min:
            return None
        try:
            block.decode()
        except UnicodeDecodeError:
            return Label("unknown", 1.0)
        return Label("txt", 1.0)

    def features(self, data: bytes) -> NDArray[np.int32]:
        """The model's input: the first and the last 1024 bytes without white space around, padded."""
        features = np.full(self._first_bytes + self._last_bytes, self._padding, np.int32)
        first = data[: self._block_bytes].lstrip()[: self._first_bytes]
        last = data[-self._block_bytes :].rstrip()[-self._last_bytes :]
        features[: len(first)] = np.frombuffer(first, np.uint8)
        features[len(features) - len(last) :] = np.frombuffer(last, np.uint8)
        return features

    def classify(self, batch: list[NDArray[np.int32]]) -> list[Label]:
        """One label for each of the features, in one run of the model."""
        (scores,) = self._session.run(["target_label"], {"bytes": np.stack(batch)})
        best = scores.argmax(axis=1)
        return [self._label(int(index), float(row[index])) for index, row in zip(best, scores, strict=True)]

    def _label(self, index: int, score: float) -> Label:
        names = self._sure if score >= self._thresholds[index] else self._unsure
        return Label(names[index], score)


def load(threads: int = THREADS) -> FileClassifier:
    """Load the model from the files of the package magika, which is never imported.

    `threads` is how many threads one run of the model uses.
    """
    paths = {file.as_posix(): Path(str(file.locate())) for file in files("magika") or ()}
    (model,) = (path for path in paths.values() if path.name == "model.onnx")
    config = json.loads(model.with_name("config.min.json").read_text(encoding="utf-8"))
    kinds = json.loads(paths["magika/config/content_types_kb.min.json"].read_text(encoding="utf-8"))
    return FileClassifier(model, config, kinds, threads)
