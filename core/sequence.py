"""One sequence on one worker: its tokens, the blocks that hold its KV, and how far it is computed.

A sequence needs ``length - computed`` tokens computed before the next token can be drawn: many
while it prefills (or recomputes after preemption), one in decode. There is no other distinction.
Of these, the ones below ``planned`` belong to steps under way; the next slice starts there.
Does not cover: which sequence runs when (the workers' schedulers).
"""

from __future__ import annotations

import numpy as np

from core.block_hash import HashArray, TokenArray, block_hashes
from core.block_pool import BlockIds, BlockPool
from core.request import AttemptKey, FinishReason, SamplingParams
from core.step import SampleSpec, Slice


class Sequence:
    """Tokens and block table of one sequence, as arrays that grow in place.

    Until its first token is drawn, a sequence stands for all n answers to its prompt; then the
    others are forked off. ``index`` says which of them it is.
    """

    __slots__ = (
        "_block_size",
        "_blocks",
        "_hashes",
        "_num_hashes",
        "_prepared",
        "_tokens",
        "block_ids",
        "cached_tokens",
        "computed",
        "computed_once",
        "ended",
        "index",
        "key",
        "last_step",
        "length",
        "num_blocks",
        "params",
        "planned",
        "prompt_length",
        "published",
        "salt",
        "sequence_id",
    )

    def __init__(
        self,
        sequence_id: int,
        key: AttemptKey,
        prompt: TokenArray,
        params: SamplingParams,
        salt: int,
        block_size: int,
        hashes: HashArray | None = None,
    ) -> None:
        """``hashes``: of all full blocks of the prompt, if somebody has computed them."""
        capacity = len(prompt) + params.max_tokens
        self.sequence_id = sequence_id
        self.index = 0
        self.key = key
        self.params = params
        self.salt = salt
        self.prompt_length = len(prompt)
        self.length = len(prompt)
        self.computed = 0
        self.planned = 0
        # Number of the step that last took it, or after which it came to wait for one.
        self.last_step = 0
        # Positions below this were computed before, here or on P: computing them again is waste.
        self.computed_once = 0
        self.cached_tokens = 0
        # Nobody waits for its answer any more; steps under way may still touch its blocks.
        self.ended = False
        self.published = 0
        self._tokens: TokenArray = np.empty(capacity, dtype=np.int32)
        self._tokens[: self.length] = prompt
        self._block_size = block_size
        self._blocks: BlockIds = np.empty(-(-capacity // block_size) + 1, dtype=np.int32)
        self.num_blocks = 0
        # A view of an array to which ids are only appended; after `forget_blocks` of another.
        self.block_ids: BlockIds = self._blocks[:0]
        self._hashes: HashArray = np.empty(capacity // block_size, dtype=np.uint64)
        self._num_hashes = 0
        if hashes is not None:
            self._num_hashes = len(hashes)
            self._hashes[: len(hashes)] = hashes
        self._prepared: Slice | None = None

    @property
    def tokens(self) -> TokenArray:
        return self._tokens[: self.length]

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be drawn, those under way included."""
        return self.length - self.computed

    @property
    def unplanned(self) -> int:
        """Tokens to compute that are in no step yet."""
        return self.length - self.planned

    @property
    def generated(self) -> int:
        return self.length - self.prompt_length

    @property
    def num_answers(self) -> int:
        """How many answers go on from here."""
        return 1 if self.generated else self.params.n

    def add_blocks(self, block_ids: BlockIds) -> None:
        end = self.num_blocks + len(block_ids)
        self._blocks[self.num_blocks : end] = block_ids
        self.num_blocks = end
        self.block_ids = self._blocks[:end]

    def add_block(self, block_id: int) -> None:
        self._blocks[self.num_blocks] = block_id
        self.num_blocks += 1
        self.block_ids = self._blocks[: self.num_blocks]

    @property
    def hashes(self) -> HashArray:
        """Of all full blocks of its tokens. Each is computed once."""
        size, known, full = self._block_size, self._num_hashes, self.length // self._block_size
        if full > known:
            parent = int(self._hashes[known - 1]) if known else None
            tokens = self._tokens[known * size : full * size]
            self._hashes[known:full] = block_hashes(tokens, size, self.salt, parent)
            self._num_hashes = full
        return self._hashes[:full]

    def adopt_prefix(self, block_ids: BlockIds) -> None:
        """Starts with blocks that already hold the KV of the first ``len(block_ids)`` blocks."""
        self.add_blocks(block_ids)
        self.computed = self.planned = len(block_ids) * self._block_size
        self.published = len(block_ids)

    def advance(self, end: int) -> None:
        """The KV of all positions below ``end`` is in place."""
        self.computed = end
        if end > self.planned:
            self.planned = end
        if end > self.computed_once:
            self.computed_once = end

    def append(self, token: int, times: int = 1) -> None:
        """The token that was drawn, ``times`` in a row."""
        if times == 1:
            self._tokens[self.length] = token
        else:
            self._tokens[self.length : self.length + times] = token
        self.length += times

    def forget_blocks(self) -> BlockIds:
        """Gives up all blocks (preemption); everything has to be computed again.

        Only for a sequence of which no step is under way.
        """
        block_ids = self.block_ids
        self._blocks = np.empty_like(self._blocks)
        self.num_blocks = 0
        self.block_ids = self._blocks[:0]
        self._prepared = None
        self.computed = self.planned = 0
        self.published = 0
        return block_ids

    def plan_slice(self, count: int, eos: frozenset[int]) -> Slice:
        """Plans the next ``count`` tokens; draws a token if that completes the sequence."""
        start, end = self.planned, self.planned + count
        self.planned = end
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.start == start and end == self.length:
            return prepared
        return self._slice(start, end, eos)

    def prepare_slice(self, eos: frozenset[int]) -> None:
        """Makes the slice of the token that the step under way draws, before it is known.

        Its place among the tokens is: the slice sees what `append` writes there. It stays unused
        if the answer ends with that token. None is made where it will need a new block.
        """
        start = self.length
        room = self.num_blocks * self._block_size
        if self.planned == start < len(self._tokens) and start < room:
            self._prepared = self._slice(start, start + 1, eos)

    def _slice(self, start: int, end: int, eos: frozenset[int]) -> Slice:
        samples = self._sample_specs(end, eos) if end >= self.length else ()
        return Slice(self.sequence_id, start, self._tokens[start:end], self.block_ids, samples)

    def _sample_specs(self, position: int, eos: frozenset[int]) -> tuple[SampleSpec, ...]:
        params, prompt_length, index = self.params, self.prompt_length, self.index
        tokens = self._tokens
        generated = position - prompt_length
        banned = self._ends(eos) if generated < params.min_tokens else ()
        if generated or params.n == 1:
            return (SampleSpec(params, position, tokens, prompt_length, index, banned),)
        return tuple(
            SampleSpec(params, position, tokens, prompt_length, i, banned)
            for i in range(index, index + params.n)
        )

    def _ends(self, eos: frozenset[int]) -> tuple[int, ...]:
        """Tokens that would end the answer."""
        ends = set() if self.params.ignore_eos else set(eos)
        return tuple(sorted(ends | set(self.params.stop_token_ids)))

    def fork(self, sequence_id: int, index: int, shared_blocks: int) -> Sequence:
        """Another answer to the same prompt, over the first ``shared_blocks`` of its blocks."""
        size = self._block_size
        fork = Sequence(
            sequence_id,
            self.key,
            self.tokens[: self.prompt_length],
            self.params,
            self.salt,
            size,
            self.hashes[: self.prompt_length // size],
        )
        fork.index = index
        fork.computed = fork.planned = self.computed
        fork.computed_once = self.computed_once
        fork.cached_tokens = self.cached_tokens
        fork.published = self.published
        fork.add_blocks(self.block_ids[:shared_blocks])
        return fork

    def publish_full_blocks(self, pool: BlockPool) -> None:
        """Enters the blocks that became full into the prefix cache."""
        start, full = self.published, self.computed // self._block_size
        if full <= start:
            return
        tokens = self._tokens[start * self._block_size : full * self._block_size]
        hashes = self.hashes
        parent = int(hashes[start - 1]) if start else None
        pool.publish(self._blocks[start:full], hashes[start:full], tokens, parent)
        self.published = full

    def certain_tokens(self, eos: frozenset[int]) -> int:
        """The answer gets so many more tokens, whatever they are; the last may be its end."""
        params = self.params
        may_stop = bool(params.stop_token_ids) or (bool(eos) and not params.ignore_eos)
        total = params.min_tokens if may_stop else params.max_tokens
        return max(1, total - self.length + self.prompt_length)

    def finish_reason(self, token: int, eos: frozenset[int]) -> FinishReason | None:
        """Whether the token just appended ends the answer."""
        params, generated = self.params, self.length - self.prompt_length
        # So it is with nearly all tokens.
        if generated < params.max_tokens and token not in eos and not params.stop_token_ids:
            return None
        return finish_reason_of(token, generated, params, eos)


def finish_reason_of(
    token: int, generated: int, params: SamplingParams, eos: frozenset[int]
) -> FinishReason | None:
    """Whether ``token``, the ``generated``-th of an answer, ends it."""
    stops = token in params.stop_token_ids or (token in eos and not params.ignore_eos)
    if stops and generated >= params.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if generated >= params.max_tokens else None
