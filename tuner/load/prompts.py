"""Makes the content of prompts: random ordinary tokens, as ids or as text.

Content depends on (content seed, run's seed, index of the request), so no two prompts are alike,
except where a trace says that they share blocks. Does not cover lengths (``workload``).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from text.tokenizer import TokenArray, Tokenizer
from tuner.load.plan import PlannedRequest

Prompt = str | TokenArray

# Text is cut into tokens again by the server; a few rounds bring it to the wanted length.
_ROUNDS = 4

# What random content belongs to.
_BLOCK, _OWN, _SAMPLE = range(3)


class PromptFormat(StrEnum):
    """What ``--prompt-format`` takes."""

    IDS = "ids"
    TEXT = "text"


class PromptMaker:
    """Makes prompts of token ids, or of text if a ``tokenizer`` is given.

    ``vocabulary`` int32 [n]: ids to draw from. ``overhead``: tokens that the server adds to every
    prompt (BOS, chat template); prompts are made that much shorter.
    """

    def __init__(
        self,
        vocabulary: TokenArray,
        content_seed: int,
        tokenizer: Tokenizer | None = None,
        overhead: int = 0,
    ) -> None:
        self._vocabulary = vocabulary
        self._content_seed = content_seed
        self._tokenizer = tokenizer
        self._overhead = overhead

    def with_overhead(self, overhead: int) -> PromptMaker:
        return PromptMaker(self._vocabulary, self._content_seed, self._tokenizer, overhead)

    def make(self, planned: PlannedRequest) -> Prompt:
        """At least one token, else the planned number less the overhead."""
        count = max(1, planned.prompt_tokens - self._overhead)
        size = planned.block_tokens
        needed = -(-count // size)
        shared = [self._draw(size, _BLOCK, block) for block in planned.block_ids[:needed]]
        own = self._draw(self._with_spare(count), _OWN, planned.seed, planned.index)
        return self._finish(np.concatenate([*shared, own]), count)

    def sample(self, count: int) -> Prompt:
        """A prompt of ``count`` tokens that no planned request has."""
        return self._finish(self._draw(self._with_spare(count), _SAMPLE), count)

    def count(self, prompt: Prompt) -> int:
        """Tokens of ``prompt`` alone, as this side counts them."""
        if isinstance(prompt, str):
            assert self._tokenizer is not None
            return len(self._tokenizer.encode(prompt, add_special_tokens=False))
        return len(prompt)

    def _with_spare(self, count: int) -> int:
        """Text may turn out shorter than the ids that it was made of."""
        return count if self._tokenizer is None else count + count // 8 + 8

    def _finish(self, ids: TokenArray, count: int) -> Prompt:
        return ids[:count] if self._tokenizer is None else _as_text(ids, count, self._tokenizer)

    def _draw(self, count: int, *key: int) -> TokenArray:
        generator = np.random.default_rng([self._content_seed, *key])
        drawn: TokenArray = generator.choice(self._vocabulary, count)
        return drawn


def _as_text(ids: TokenArray, count: int, tokenizer: Tokenizer) -> str:
    """The start of ``ids`` whose text is cut into ``count`` tokens again, or nearly."""
    take = count
    for _ in range(_ROUNDS):
        text = tokenizer.decode(ids[:take].tolist())
        missing = count - len(tokenizer.encode(text, add_special_tokens=False))
        if not missing or not 1 <= take + missing <= len(ids):
            break
        take += missing
    return text
