"""How long each worker would take with one prompt: columns of milliseconds, computed when asked.

Of a handoff: what waits at P and the uncached part of the prompt (from the profile, with the
context that attention reads), then the transfer of the blocks that D does not hold. Of D: the time
of a step with this request in the batch, and the wait for a place and for blocks. Does not cover:
what is better than what (``router.policies``).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from router.candidates import Candidates, Mask, PromptShape
from router.cost_model import CostModel
from router.placement import Forecast

Times = npt.NDArray[Any]

# How long an answer is that nobody knows yet: a usual one of a chat.
ANSWER_TOKENS = 64


class Predictions:
    """Columns like those of ``candidates``, float64 milliseconds.

    ``answers``: of the request. ``queued_context``: tokens that one token of the prompts that wait
    attends to, on average.
    """

    def __init__(
        self,
        costs: CostModel,
        prompt: PromptShape,
        candidates: Candidates,
        answers: int = 1,
        queued_context: float = 0.0,
    ) -> None:
        self.candidates = candidates
        self._costs = costs
        self._prompt = prompt
        self._answers = answers
        self._queued_context = queued_context

    @cached_property
    def uncached(self) -> Times:
        """Tokens; at least one, as in `PromptShape.uncached_tokens`."""
        prompt = self._prompt
        tokens = prompt.num_tokens - prompt.block_size * self.candidates.held
        return np.maximum(tokens, 1.0)

    @cached_property
    def lacking(self) -> npt.NDArray[np.int64]:
        """Blocks of the prompt."""
        return self._prompt.num_blocks - self.candidates.held

    @cached_property
    def prefill_ms(self) -> Times:
        """At each as P: what waits there, then this prompt."""
        engine, own = self._costs.prefill, self.prefill_own_ms
        ahead = self._ahead(own, engine.budget)
        times: Times = engine.waiting_ms(ahead, self._queued_context) + own
        return times

    @cached_property
    def prefill_own_ms(self) -> Times:
        own: Times = self._costs.prefill.prompt_ms(self.uncached, self._prompt.num_tokens)
        return own

    @cached_property
    def transfer_ms(self) -> Times:
        """To each as D: all blocks that it lacks."""
        per_block = self._costs.token_ms * self._prompt.block_size
        times: Times = self._costs.batch_ms + per_block * self.lacking
        return times

    @cached_property
    def tpot_ms(self) -> Times:
        """At each as D: a step with this request in the batch."""
        columns, size = self.candidates, self._prompt.block_size
        batch = np.minimum(columns.sequences + self._answers, columns.max_num_seqs)
        own = self._costs.decode.context_ms * self._prompt.num_tokens * self._answers
        times: Times = self._costs.decode.step_ms(batch, size * columns.context_blocks)
        return times + own

    @cached_property
    def room_ms(self) -> Times:
        """At each as D: until there is a place and blocks. The answers there end evenly over the
        time that one takes, and each gives its part of places and blocks back."""
        columns = self.candidates
        blocks = self.lacking - columns.free_blocks
        places = columns.sequences + self._answers - columns.max_num_seqs
        if max(blocks.max(initial=0), places.max(initial=0)) <= 0:
            return np.zeros(len(blocks))
        used = np.maximum(1, columns.num_blocks - columns.free_blocks)
        ending = np.maximum(blocks / used, places / np.maximum(1, columns.max_num_seqs))
        answer_ms: Times = self.tpot_ms * ANSWER_TOKENS
        wait: Times = np.maximum(0.0, ending) * answer_ms
        return wait

    @cached_property
    def local_ms(self) -> Times:
        """At each as D alone: to the first token, what waits there first, beside its answers."""
        waiting, own = self.local_waiting_ms, self.local_own_ms
        tokens = self.candidates.pending_prefill_tokens + self.uncached
        # Each chunk goes through in one step with the answers.
        steps = tokens / self._costs.decode.budget
        beside = self.tpot_ms - self._costs.decode.least_ms
        times: Times = waiting + own + np.ceil(steps) * beside + self.room_ms
        return times

    @cached_property
    def local_waiting_ms(self) -> Times:
        engine = self._costs.decode
        ahead = self._ahead(self.local_own_ms, engine.budget)
        times: Times = engine.waiting_ms(ahead, self._queued_context)
        return times

    def _ahead(self, own_ms: Times, chunk: int) -> Times:
        """Tokens that each computes before this prompt, which takes it so long. What is late anyway
        gives way to what can be in time, once the chunk that is under way has ended."""
        pending, late = self.candidates.pending_prefill_tokens, self.candidates.late_tokens
        if not late.any():
            return pending
        passing = pending - late + np.minimum(late, chunk)
        tokens: Times = np.where(self._costs.is_late(own_ms), pending, passing)
        return tokens

    @cached_property
    def local_own_ms(self) -> Times:
        own: Times = self._costs.decode.prompt_ms(self.uncached, self._prompt.num_tokens)
        return own

    @cached_property
    def stall_ms(self) -> Times:
        """What the prompt adds to the steps of each as D."""
        return self.local_own_ms - self._costs.decode.least_ms

    def least_local_ms(self, among: Mask) -> float:
        """Of ``among`` as D, the least that computing takes where most of the prompt is held."""
        held = int(self.candidates.held[among].max())
        uncached = self._prompt.uncached_tokens(held)
        return float(self._costs.decode.prompt_ms(uncached, self._prompt.num_tokens))

    def handoff_ms(self, prefill: int, decode: int) -> float:
        """To the first token. Blocks are shipped while later ones are computed: what the transfer
        takes longer than that is added, at least the last chunk's."""
        costs = self._costs
        last = min(float(self.uncached[prefill]), costs.prefill.budget)
        tail = costs.batch_ms + costs.token_ms * last
        shipping = float(self.transfer_ms[decode])
        shipping = max(min(tail, shipping), shipping - float(self.prefill_own_ms[prefill]))
        computing = float(self.prefill_ms[prefill])
        return computing + shipping + float(self.room_ms[decode]) + 2 * costs.message_ms

    def forecast(self, decode: int, prefill: int | None) -> Forecast:
        """Of one placement, in seconds."""
        held = self.candidates.held
        if prefill is None:
            first_ms, prefill_held = float(self.local_ms[decode]), 0
        else:
            first_ms, prefill_held = self.handoff_ms(prefill, decode), int(held[prefill])
        return Forecast(
            ttft_s=first_ms / 1000,
            tpot_s=float(self.tpot_ms[decode]) / 1000,
            prefill_held=prefill_held,
            decode_held=int(held[decode]),
        )
