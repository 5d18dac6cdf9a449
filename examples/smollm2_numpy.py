"""Several conversations with SmolLM2 decoded together, iteration by iteration.

`Decoder` is an engine of steps: conversations join and leave between steps, and one step is one pass over
the weights for the next token of every conversation. That is where the gain is, as a pass costs little
more for eight tokens than for one. The tokens are the same whoever else is there (`smollm2_model.py` has
how). Prompts are read in the same passes, a part at a time, so that a long one delays the others little.

Nothing here is asynchronous or safe for use by several threads at once: one thread makes all the calls.
"""

import sys
from collections.abc import Hashable, Sequence
from typing import NamedTuple, NotRequired, TypedDict

from smollm2_model import PAGE_TOKENS, Cache, Model, Run, load
from smollm2_text import ChatTokenizer

CONVERSATIONS = 8  # Decoded together.
ROWS_PER_STEP = 32  # Tokens in one pass: one of each answer, and as many of prompts as there is room for.
TOKENS_PER_CONVERSATION = 1024  # Prompt and answer together; the keys and values of each take 45 KiB.
MAX_TOKENS_DEFAULT = 128


class Conversation(TypedDict):
    """What is asked: messages with "role" and "content", and how many tokens the answer may have."""

    messages: list[dict[str, str]]
    max_tokens: NotRequired[int]


class Token(NamedTuple):
    """A token of an answer: its id, and the text that it completes, which may be none."""

    id: int
    text: str


class _Sequence:
    """A conversation that is being decoded."""

    def __init__(self, model: Model, tokenizer: ChatTokenizer, conversation: Conversation) -> None:
        prompt = tokenizer.prompt(conversation["messages"])
        max_tokens = conversation.get("max_tokens", MAX_TOKENS_DEFAULT)
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, and at least 1 is needed")
        if len(prompt) + max_tokens > TOKENS_PER_CONVERSATION:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens and asks for {max_tokens} more, and there is "
                f"room for {TOKENS_PER_CONVERSATION} together: shorten it, or lower max_tokens"
            )
        self.cache = Cache(model, len(prompt) + max_tokens)
        self.unread = prompt  # Tokens that the cache does not hold yet.
        self.tokens_left = max_tokens
        self.text = tokenizer.text_stream()


class Decoder:
    """Decodes up to `conversations` at once, greedily. A ticket is any hashable name of a conversation."""

    def __init__(self, model: Model, conversations: int = CONVERSATIONS) -> None:
        if not 1 <= conversations <= ROWS_PER_STEP:
            raise ValueError(f"conversations is {conversations}, and not of 1 to {ROWS_PER_STEP}")
        self._model = model
        self._tokenizer = ChatTokenizer(model.fields)
        self._conversations = conversations
        self._active: dict[Hashable, _Sequence] = {}  # In order of arrival.
        self._refused: dict[Hashable, Exception] = {}

    def capacity(self) -> int:
        """How many more conversations may be added now."""
        return self._conversations - len(self._active) - len(self._refused)

    def add(self, items: Sequence[tuple[Hashable, Conversation]]) -> None:
        """Let conversations join at the next step, which reports those that cannot be had."""
        for ticket, conversation in items:
            try:
                self._active[ticket] = _Sequence(self._model, self._tokenizer, conversation)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._refused[ticket] = error

    def remove(self, tickets: Sequence[Hashable]) -> None:
        """Drop conversations and their caches. Those that have ended, or never were, do no harm."""
        for ticket in tickets:
            self._active.pop(ticket, None)
            self._refused.pop(ticket, None)

    def step(self) -> list[tuple[Hashable, Token | Exception, bool]]:
        """One pass over the weights: the next token of each whose prompt is read, and whether it is the last.

        The model's own end of an answer is a token without text. A conversation that cannot be had is
        reported with its exception, once.
        """
        results: list[tuple[Hashable, Token | Exception, bool]]
        results = [(ticket, error, True) for ticket, error in self._refused.items()]
        self._refused.clear()
        runs = self._next_runs()
        if not runs:
            return results
        likeliest = self._model.forward(list(runs.values()))
        for (ticket, run), token_id in zip(runs.items(), likeliest.tolist(), strict=True):
            sequence = self._active[ticket]
            del sequence.unread[: len(run.tokens)]
            if sequence.unread:
                continue  # More of the prompt comes first.
            sequence.unread.append(token_id)
            sequence.tokens_left -= 1
            done = token_id == self._tokenizer.end or not sequence.tokens_left
            results.append((ticket, Token(token_id, sequence.text.add(token_id)), done))
            if done:
                del self._active[ticket]
        return results

    def _next_runs(self) -> dict[Hashable, Run]:
        """What goes into the next pass: every answer's last token first, then prompts by arrival."""
        room = ROWS_PER_STEP
        runs: dict[Hashable, Run] = {}
        for ticket, sequence in sorted(self._active.items(), key=lambda item: len(item[1].unread) > 1):
            of_page = PAGE_TOKENS - sequence.cache.tokens % PAGE_TOKENS
            tokens = sequence.unread[: min(room, of_page)]
            if tokens:
                runs[ticket] = Run(sequence.cache, tokens)
                room -= len(tokens)
        return runs


def main() -> None:
    """Answer the prompts of the command line together, and print the answers."""
    prompts = sys.argv[1:] or ["What is a water wheel?", "Name three rivers.", "Why is the sky blue?"]
    decoder = Decoder(load())
    answers = dict.fromkeys(prompts, "")
    waiting = list(answers)
    while waiting or decoder.capacity() < CONVERSATIONS:
        joining = [waiting.pop(0) for _ in range(min(decoder.capacity(), len(waiting)))]
        decoder.add([(prompt, {"messages": [{"role": "user", "content": prompt}]}) for prompt in joining])
        for prompt, result, _ in decoder.step():
            answers[str(prompt)] += result.text if isinstance(result, Token) else str(result)
    for prompt, answer in answers.items():
        print(f"{prompt}\n{answer}\n")


if __name__ == "__main__":
    main()
