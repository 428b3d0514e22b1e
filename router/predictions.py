"""How long each worker would take with one prompt: columns of milliseconds, computed when asked.

Of a handoff: what waits at P and the uncached part of the prompt (from the profile, with the
context that attention reads), then the transfer of the blocks that D does not hold. Of D: the time
of a step with this request in the batch, and the wait for a place and for blocks. What depends on
nothing but the blocks that are held has a value for each level of them, not for each worker. Does
not cover: what is better than what (``router.policies``).
"""

from __future__ import annotations

from bisect import bisect_left
from operator import neg
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from router.candidates import Candidates, Counts, PromptShape
from router.cost_model import CostModel, EngineTimes
from router.held_blocks import Numbers
from router.lazy import lazy
from router.placement import Forecast

Times = npt.NDArray[Any]

# How long an answer is that nobody knows yet: a usual one of a chat.
ANSWER_TOKENS = 64


class Alone(NamedTuple):
    """One worker as D alone, in ms: to the first token; of that, what waits there before."""

    first_ms: float
    waiting_ms: float


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
        # By level of what is held: tokens to compute.
        tokens, size = prompt.num_tokens, prompt.block_size
        self._uncached = [max(1, tokens - size * held) for held in candidates.held.levels]

    @lazy
    def uncached(self) -> Times:
        """Tokens; at least one, as in `PromptShape.uncached_tokens`."""
        return self.candidates.held.spread(self._uncached)

    # As P

    @lazy
    def prefill_ms(self) -> Times:
        """At each as P: what waits there, then this prompt."""
        times = self._waiting_ms(self._costs.prefill, self._prefill_own)
        times += self.prefill_own_ms
        return times

    @lazy
    def prefill_own_ms(self) -> Times:
        return self.candidates.held.spread(self._prefill_own)

    @lazy
    def _prefill_own(self) -> list[float]:
        return self._own(self._costs.prefill)

    # As D

    @lazy
    def transfer_ms(self) -> Times:
        """To each as D: all blocks that it lacks."""
        costs, prompt = self._costs, self._prompt
        per_block, blocks = costs.token_ms * prompt.block_size, prompt.num_blocks
        held = self.candidates.held
        return held.spread([costs.batch_ms + per_block * (blocks - n) for n in held.levels])

    @lazy
    def tpot_ms(self) -> Times:
        """At each as D: a step with this request in the batch."""
        engine, prompt = self._costs.decode, self._prompt
        batch, most = self._batch, self.candidates.usable.max_num_seqs
        context = prompt.block_size * self.candidates.loads.context_blocks
        times = engine.step_ms(np.minimum(batch, most) if self._is_anybody_full else batch, context)
        times += engine.context_ms * prompt.num_tokens * self._answers
        return times

    @lazy
    def _batch(self) -> Counts:
        """Answers at each as D, those of this request and those that wait among them."""
        return self.candidates.loads.sequences + self._answers

    @lazy
    def _is_anybody_full(self) -> bool:
        return bool(np.count_nonzero(self._batch > self.candidates.usable.max_num_seqs))

    @lazy
    def room_ms(self) -> Times:
        """At each as D: until there is a place and blocks. The answers there end evenly over the
        time that one takes, and each gives its part of places and blocks back."""
        loads, usable = self.candidates.loads, self.candidates.usable
        blocks = self._prompt.num_blocks - self.candidates.held.blocks - loads.free_blocks
        places = self._batch - usable.max_num_seqs
        used = np.maximum(1, usable.num_blocks - loads.free_blocks)
        ending = np.maximum(blocks / used, places / np.maximum(1, usable.max_num_seqs))
        wait: Times = np.maximum(0.0, ending) * (self.tpot_ms * ANSWER_TOKENS)
        return wait

    @lazy
    def all_have_room(self) -> bool:
        """Whether nobody has too few blocks even for all of the prompt, nor places."""
        if self._is_anybody_full:
            return False
        return not np.count_nonzero(self.candidates.loads.free_blocks < self._prompt.num_blocks)

    # As D alone

    @lazy
    def local_ms(self) -> Times:
        """At each as D alone: to the first token, what waits there first, beside its answers."""
        engine = self._costs.decode
        # Each chunk goes through in one step with the answers.
        tokens = self.candidates.loads.pending_prefill_tokens + self.uncached
        times: Times = np.ceil(tokens / engine.budget)
        times *= self.tpot_ms - engine.least_ms
        times += self.local_waiting_ms
        times += self.local_own_ms
        if not self.all_have_room:
            times += self.room_ms
        return times

    @lazy
    def local_waiting_ms(self) -> Times:
        return self._waiting_ms(self._costs.decode, self._local_own)

    @lazy
    def local_own_ms(self) -> Times:
        return self.candidates.held.spread(self._local_own)

    @lazy
    def _local_own(self) -> list[float]:
        costs = self._costs
        return self._prefill_own if costs.decode is costs.prefill else self._own(costs.decode)

    @lazy
    def stall_ms(self) -> Times:
        """What the prompt adds to the steps of each as D."""
        return self.local_own_ms - self._costs.decode.least_ms

    def that_compute_within(self, among: Numbers, limit_ms: float) -> Numbers:
        """Those of ``among`` as D that compute the prompt, alone, in at most ``limit_ms``: they
        hold much of it, or it is short."""
        # The more is held, the less is to be computed.
        enough = bisect_left(self._local_own, -limit_ms, key=neg)
        if enough == 0:
            return among
        if enough == len(self._local_own):
            return among[:0]
        return among[self.candidates.held.level_of.take(among) >= enough]

    def local_own_of(self, number: int) -> tuple[float, float]:
        """Of one worker: what `local_own_ms` and `stall_ms` say of it."""
        own = self._local_own[self.candidates.held.level_of.item(number)]
        return own, own - self._costs.decode.least_ms

    def alone(self, number: int) -> Alone:
        """Of one worker: what `local_ms` and the other columns say of it."""
        loads, engine = self.candidates.loads, self._costs.decode
        level = self.candidates.held.level_of.item(number)
        own, tpot = self._local_own[level], self.tpot_ms.item(number)
        pending, late = loads.pending_prefill_tokens.item(number), loads.late_tokens.item(number)
        ahead = pending if self._costs.is_late(own) else pending - late + min(late, engine.budget)
        waiting: float = engine.waiting_ms(ahead, self._queued_context)
        steps = -(-(pending + self._uncached[level]) // engine.budget)
        room = 0.0 if self.all_have_room else self.room_ms.item(number)
        first = waiting + own + steps * (tpot - engine.least_ms) + room
        return Alone(first, waiting)

    # Both

    def _own(self, engine: EngineTimes) -> list[float]:
        """To compute the prompt alone, by level of what is held."""
        return engine.prompts_ms(self._uncached, self._prompt.num_tokens)

    def _waiting_ms(self, engine: EngineTimes, own_ms: list[float]) -> Times:
        """Until each has computed what comes before this prompt, which takes it so long. What is
        late anyway gives way to what can be in time, once the chunk under way has ended."""
        loads = self.candidates.loads
        ahead, late = loads.pending_prefill_tokens, loads.late_tokens
        if np.count_nonzero(late):
            passing = ahead - late + np.minimum(late, engine.budget)
            are_late = [self._costs.is_late(time) for time in own_ms]
            ahead = np.where(self.candidates.held.spread(are_late), ahead, passing)
        times: Times = engine.waiting_ms(ahead, self._queued_context)
        return times

    def handoff_ms(self, prefill: int, decode: int) -> float:
        """To the first token. Blocks are shipped while later ones are computed: what the transfer
        takes longer than that is added, at least the last chunk's."""
        costs, level = self._costs, self.candidates.held.level_of.item(prefill)
        last = min(self._uncached[level], costs.prefill.budget)
        tail = costs.batch_ms + costs.token_ms * last
        shipping: float = self.transfer_ms.item(decode)
        shipping = max(min(tail, shipping), shipping - self._prefill_own[level])
        computing: float = self.prefill_ms.item(prefill)
        room: float = 0.0 if self.all_have_room else self.room_ms.item(decode)
        return computing + shipping + room + 2 * costs.message_ms

    def forecast(self, decode: int, prefill: int | None) -> Forecast:
        """Of one placement, in seconds."""
        held = self.candidates.held
        if prefill is None:
            first_ms, prefill_held = self.alone(decode).first_ms, 0
        else:
            first_ms, prefill_held = self.handoff_ms(prefill, decode), held.of(prefill)
        return Forecast(
            ttft_s=first_ms / 1000,
            tpot_s=self.tpot_ms.item(decode) / 1000,
            prefill_held=prefill_held,
            decode_held=held.of(decode),
        )
