"""How long each worker would take with one prompt: columns of milliseconds, computed when asked.

Of a handoff: what waits at P and the uncached part of the prompt (from the profile, with the
context that attention reads), then the transfer of the blocks that D does not hold. Of D: the time
of a step with this request in the batch, and the wait for a place and for blocks. What depends on
nothing but the blocks that are held has a value for each level of them, not for each worker. Does
not cover: what is better than what (``router.routing.policies``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from router.placement import Forecast
from router.routing.candidates import Candidates, Counts, PromptShape
from router.routing.cost_model import CostModel, EngineTimes
from router.routing.lazy import lazy

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
        self._usable, self._loads, self._held = candidates.usable, candidates.loads, candidates.held
        self._costs = costs
        self._prompt, self._blocks = prompt, prompt.num_blocks
        self._answers = answers
        self._queued_context = queued_context
        # By level of what is held: tokens to compute.
        tokens, size = prompt.num_tokens, prompt.block_size
        self._uncached = [tokens - size * held for held in self._held.levels]
        # Only who holds most can hold all.
        self._uncached[-1] = max(1, self._uncached[-1])
        self._first_ms: dict[tuple[int, int], float] = {}

    @lazy
    def uncached(self) -> Times:
        """Tokens; at least one, as in `PromptShape.uncached_tokens`."""
        return self._held.spread(self._uncached)

    # As P

    @lazy
    def prefill_ms(self) -> Times:
        """At each as P: what waits there, then this prompt."""
        return self.weighted_prefill_ms(1.0)

    def weighted_prefill_ms(self, weight: float) -> Times:
        """The same, but the time of this prompt counts ``weight`` times: a new column."""
        times = self._held.spread([weight * own for own in self._prefill_own])
        times += self._waiting_ms(self._costs.prefill, self._prefill_own)
        return times

    def prefill_of(self, number: int) -> float:
        """Of one worker: what `prefill_ms` says of it."""
        own = self.prefill_own_of(number)
        return self._waiting_of(self._costs.prefill, number, own) + own

    def prefill_own_of(self, number: int) -> float:
        """The part of it that is this prompt's."""
        return self._prefill_own[self._held.level_of.item(number)]

    @lazy
    def _prefill_own(self) -> list[float]:
        return self._own(self._costs.prefill)

    # As D

    def transfer_ms(self, parts: int = 1) -> Times:
        """To each as D, one of so many ``parts`` of the time: all blocks that it lacks."""
        return self._held.spread([time / parts for time in self._transfer])

    @lazy
    def _transfer(self) -> list[float]:
        costs, prompt = self._costs, self._prompt
        per_block, blocks = costs.token_ms * prompt.block_size, self._blocks
        return [costs.batch_ms + per_block * (blocks - n) for n in self._held.levels]

    @lazy
    def tpot_ms(self) -> Times:
        """At each as D: a step with this request in the batch."""
        return self.joined_ms + self.context_ms

    def tpot_of(self, number: int) -> float:
        """The same of one worker."""
        joined: float = self.joined_ms.item(number)
        return joined + self.context_ms

    @lazy
    def context_ms(self) -> float:
        """What attending to this prompt adds to a step, wherever it is."""
        return self._costs.decode.context_ms * self._prompt.num_tokens * self._answers

    @lazy
    def joined_ms(self) -> Times:
        """At each as D: `tpot_ms` but for that, which makes nobody better than others."""
        engine, answers = self._costs.decode, self._answers
        loads, usable = self._loads, self._usable
        others = usable.most_others if answers == 1 else usable.max_num_seqs - answers
        times = engine.joined_step_ms(np.minimum(loads.sequences, others), answers)
        times += engine.context_ms * self._prompt.block_size * loads.context_blocks
        return times

    @lazy
    def _batch(self) -> Counts:
        """Answers at each as D, those of this request and those that wait among them."""
        return self._loads.sequences + self._answers

    @lazy
    def room_ms(self) -> Times:
        """At each as D: until there is a place and blocks. The answers there end evenly over the
        time that one takes, and each gives its part of places and blocks back."""
        loads, usable = self._loads, self._usable
        blocks = self._blocks - self._held.blocks - loads.free_blocks
        places = self._batch - usable.max_num_seqs
        used = np.maximum(1, usable.num_blocks - loads.free_blocks)
        ending = np.maximum(blocks / used, places / np.maximum(1, usable.max_num_seqs))
        wait: Times = np.maximum(0.0, ending) * (self.tpot_ms * ANSWER_TOKENS)
        return wait

    def has_room(self, number: int) -> bool:
        """Whether one worker as D has a place and blocks now: `room_ms` is 0."""
        loads, usable = self._loads, self._usable
        lacking = self._blocks - self._held.of(number)
        places = usable.max_num_seqs.item(number) - loads.sequences.item(number)
        return lacking <= loads.free_blocks.item(number) and self._answers <= places

    @lazy
    def all_have_room(self) -> bool:
        """Whether nobody has too few blocks even for all of the prompt, nor places."""
        loads, usable = self._loads, self._usable
        if np.count_nonzero(self._batch > usable.max_num_seqs):
            return False
        return not np.count_nonzero(loads.free_blocks < self._blocks)

    # As D alone

    @lazy
    def local_ms(self) -> Times:
        """At each as D alone: to the first token, what waits there first, beside its answers."""
        engine = self._costs.decode
        # Each chunk goes through in one step with the answers.
        tokens = self._loads.pending_prefill_tokens + self.uncached
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
        return self._held.spread(self._local_own)

    @lazy
    def _local_own(self) -> list[float]:
        costs = self._costs
        return self._prefill_own if costs.decode is costs.prefill else self._own(costs.decode)

    @lazy
    def stall_ms(self) -> Times:
        """What the prompt adds to the steps of each as D."""
        return self.local_own_ms - self._costs.decode.least_ms

    def least_alone_ms(self, weight: float) -> Times:
        """What the prompt takes at each as D, counted ``weight`` times, with the steps of its own
        answer and what it adds to those of the answers there: a new column."""
        own, least = self._local_own, self._costs.decode.least_ms
        times = self._held.spread([time - least for time in own])
        times *= self._loads.sequences
        times += self._held.spread(
            [weight * time + ANSWER_TOKENS * self.context_ms for time in own]
        )
        times += ANSWER_TOKENS * self.joined_ms
        return times

    def local_own_of(self, number: int) -> tuple[float, float]:
        """Of one worker: what `local_own_ms` and `stall_ms` say of it."""
        own = self._local_own[self._held.level_of.item(number)]
        return own, own - self._costs.decode.least_ms

    def alone(self, number: int) -> Alone:
        """Of one worker: what `local_ms` and the other columns say of it."""
        engine = self._costs.decode
        level = self._held.level_of.item(number)
        own, tpot = self._local_own[level], self.tpot_of(number)
        waiting = self._waiting_of(engine, number, own)
        pending = self._loads.pending_prefill_tokens.item(number)
        steps = -(-(pending + self._uncached[level]) // engine.budget)
        first = waiting + own + steps * (tpot - engine.least_ms) + self._room_of(number)
        return Alone(first, waiting)

    # Both

    def _own(self, engine: EngineTimes) -> list[float]:
        """To compute the prompt alone, by level of what is held."""
        return engine.prompts_ms(self._uncached, self._prompt.num_tokens)

    def _waiting_ms(self, engine: EngineTimes, own_ms: list[float]) -> Times:
        """Until each has computed what comes before this prompt, which takes it so long. What is
        late anyway gives way to what can be in time, once the chunk under way has ended."""
        loads = self._loads
        ahead, late = loads.pending_prefill_tokens, loads.late_tokens
        if np.count_nonzero(late):
            passing = ahead - late + np.minimum(late, engine.budget)
            are_late = [self._costs.is_late(time) for time in own_ms]
            ahead = np.where(self._held.spread(are_late), ahead, passing)
        times: Times = engine.waiting_ms(ahead, self._queued_context)
        return times

    def _waiting_of(self, engine: EngineTimes, number: int, own_ms: float) -> float:
        """The same of one worker."""
        loads = self._loads
        ahead, late = loads.pending_prefill_tokens.item(number), loads.late_tokens.item(number)
        if late and not self._costs.is_late(own_ms):
            ahead -= late - min(late, engine.budget)
        time: float = engine.waiting_ms(ahead, self._queued_context)
        return time

    def _room_of(self, number: int) -> float:
        return 0.0 if self.has_room(number) else self.room_ms.item(number)

    def handoff_ms(self, prefill: int, decode: int) -> float:
        """To the first token."""
        known = self._first_ms.get((prefill, decode))
        if known is None:
            known = self._first_ms[prefill, decode] = self._handoff_ms(prefill, decode)
        return known

    def _handoff_ms(self, prefill: int, decode: int) -> float:
        """Blocks are shipped while later ones are computed: what the transfer takes longer than
        that is added, at least the last chunk's."""
        costs, held = self._costs, self._held
        last = min(self._uncached[held.level_of.item(prefill)], costs.prefill.budget)
        tail = costs.batch_ms + costs.token_ms * last
        shipping = self._transfer[held.level_of.item(decode)]
        shipping = max(min(tail, shipping), shipping - self.prefill_own_of(prefill))
        return self.prefill_of(prefill) + shipping + self._room_of(decode) + 2 * costs.message_ms

    def forecast(self, decode: int, prefill: int | None) -> Forecast:
        """Of one placement, in seconds."""
        held = self._held
        if prefill is None:
            first_ms, prefill_held = self.alone(decode).first_ms, 0
        else:
            first_ms, prefill_held = self.handoff_ms(prefill, decode), held.of(prefill)
        return Forecast(
            ttft_s=first_ms / 1000,
            tpot_s=self.tpot_of(decode) / 1000,
            prefill_held=prefill_held,
            decode_held=held.of(decode),
        )
