"""The words of SmolLM2: its tokenizer, built from what the weights' file says of it, and its chat format."""

from collections.abc import Sequence
from typing import Any

import tokenizers  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

CONTROL_TOKEN = 3  # The GGUF's type of a token that is no text.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ROLES = ("system", "user", "assistant")

hf: Any = tokenizers  # The package ships no types for what is built here.


class ChatTokenizer:
    """Turns conversations into token ids, and token ids into text as they come.

    `fields` are the metadata of the GGUF, by name.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        tokens: list[str] = fields["tokenizer.ggml.tokens"]
        if (kind := fields["tokenizer.ggml.pre"]) != "smollm":
            raise ValueError(f"the words are split as {kind!r} has it, and only smollm's way is known here")
        ids = {token: index for index, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        self._tokenizer = hf.Tokenizer(hf.models.BPE(vocab=ids, merges=merges))
        self._tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence(
            [
                hf.pre_tokenizers.Digits(individual_digits=True),
                hf.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.decoder = hf.decoders.ByteLevel()
        types = fields["tokenizer.ggml.token_type"]
        control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == CONTROL_TOKEN]
        self._tokenizer.add_special_tokens(control)
        self._tokenizer.encode_special_tokens = True  # A user who writes "<|im_end|>" ends nothing.
        self._start, self.end = ids["<|im_start|>"], int(fields["tokenizer.ggml.eos_token_id"])

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids up to where the model goes on, which is behind the last message if it is its own.

        Raises ValueError where there are no messages, or one without content or with another role than
        system, user or assistant.
        """
        if not messages or any(
            message.get("role") not in ROLES or "content" not in message for message in messages
        ):
            raise ValueError(f"a conversation is messages with content and a role of {', '.join(ROLES)}")
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": SYSTEM}, *messages]
        ids: list[int] = []
        for message in messages:
            ids += [self._start, *self._encode(f"{message['role']}\n{message['content']}")]
            ids += [self.end, *self._encode("\n")]
        if messages[-1]["role"] == "assistant":
            return ids[: -1 - len(self._encode("\n"))]
        return [*ids, self._start, *self._encode("assistant\n")]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text_stream(self) -> "TextStream":
        """What puts one answer's tokens together to text."""
        return TextStream(self._tokenizer)


class TextStream:
    """The text of one answer, token by token; a character of several tokens comes with its last one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = hf.decoders.DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""
