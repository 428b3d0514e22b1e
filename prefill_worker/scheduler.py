"""P's scheduler: which prompts are computed, in which chunks. Pure: the clock is passed in.

Covers: own blocks before D's, and only when a prompt's turn is near; the bound on prompts that
hold blocks without a ticket; chunks within the token budget of a step, several of one prompt
under way at once; at most one prompt half computed, and chunks for it however many pass it;
blocks held until the handoff is over and no step under way touches them.
Does not cover: who passes whom (``core.prefill_order``), the handoff (``core.push``), computing
(``engine``).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.block_hash import HashArray, TokenArray
from core.block_pool import BlockIds, BlockPool
from core.errors import InvalidField
from core.in_flight import InFlight
from core.outputs import Load, StepCounters
from core.prefill_order import DEFAULT_TTFT_S, PrefillOrder
from core.request import AttemptKey, SamplingParams
from core.sequence import Sequence
from core.step import SampledToken, Slice, StepPlan, StepResult

# Prompts without a ticket may hold this share of the pool, so that D's refusal to take them
# can never stop those that D did take.
UNTICKETED_SHARE = 0.3
# A started prompt pins blocks of D, whose lease lasts while there is progress within five steps
# (``core.handoff.LeaseTimes.stall_limit``): after so many steps without it, it goes first.
MAX_STEPS_LEFT_OUT = 3


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """KV of the first ``computed`` prompt tokens is final.

    ``first_tokens``: that of each of the n answers, once the prompt is complete. ``error``: why
    they could not be drawn.
    """

    key: AttemptKey
    computed: int
    first_tokens: tuple[SampledToken, ...]
    cached_tokens: int
    error: str = ""


class PrefillScheduler:
    """Prompts that wait, that are computed, and that are held for D. Its owner holds a lock.

    ``depth``: how many steps may be under way at once (the stages of the pipeline). They are
    completed in the order of their plans. ``ttft``: seconds in which requests want their first
    token.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos: frozenset[int],
        depth: int = 1,
        ttft: float = DEFAULT_TTFT_S,
        max_positions: int | None = None,
    ) -> None:
        self.counters = StepCounters()
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._eos = eos
        self._depth = depth
        self._max_positions = max_positions
        self._next_id = 0
        self._order = PrefillOrder(ttft)
        # By sequence id, that is by arrival.
        self._waiting: dict[int, Sequence] = {}
        self._waiting_tokens = 0
        # Being computed, or complete and held for D.
        self._started: dict[AttemptKey, Sequence] = {}
        # Of started prompts with tokens in no step yet: plans in a row without them.
        self._left_out: dict[int, int] = {}
        self._unticketed: set[AttemptKey] = set()
        self._in_flight = InFlight()

    def add(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        params: SamplingParams,
        salt: int,
        now: float,
        hashes: HashArray | None = None,
    ) -> None:
        """Queues a prompt. Raises `InvalidField` if this pool can never hold it, or the model can't
        compute it."""
        needed = -(-len(tokens) // self._pool.block_size)
        if needed > self._pool.num_blocks:
            raise InvalidField(
                "prompt",
                f"{len(tokens)} tokens",
                f"this prefill worker's KV pool holds "
                f"{self._pool.num_blocks * self._pool.block_size} tokens",
            )
        if self._max_positions is not None and len(tokens) > self._max_positions:
            fix = f"this model ends at {self._max_positions} tokens"
            raise InvalidField("prompt", f"{len(tokens)} tokens", fix)
        self._next_id += 1
        size = self._pool.block_size
        sequence = Sequence(self._next_id, key, tokens, params, salt, size, hashes)
        held = self._cached_prefix(sequence)
        self._waiting[sequence.sequence_id] = sequence
        self._waiting_tokens += sequence.length
        uncached = len(tokens) - len(held) * size
        self._order.add(sequence.sequence_id, uncached, now)

    def start_next(self, now: float) -> list[AttemptKey]:
        """Gives blocks to prompts that the steps under way or the next one compute.

        Returns those that start now: time to reserve on D. Earlier would pin blocks on both sides,
        and start the clock of leases, for prompts that only wait their turn here.
        """
        started: list[AttemptKey] = []
        if not self._waiting:
            return started
        ahead = sum(s.planned - s.computed for s in self._in_flight)
        if ahead >= (self._depth + 1) * self._budget:
            return started
        long_must_wait = self._long_must_wait
        for pending in self._order.sequence(now):
            if ahead >= (self._depth + 1) * self._budget:
                break
            sequence = self._waiting.get(pending.number)
            if sequence is None:
                ahead += pending.remaining
                continue
            if long_must_wait and pending.remaining > self._budget:
                if pending.is_aged:
                    break
                continue
            if not self._start(sequence):
                break
            started.append(sequence.key)
            ahead += sequence.unplanned
            long_must_wait = self._long_must_wait
        return started

    @property
    def _long_must_wait(self) -> bool:
        """Whether a prompt of several steps would start long before another one is complete."""
        limit = self._depth * self._budget
        return any(s.unplanned > limit for s in self._started.values() if not s.generated)

    def _start(self, sequence: Sequence) -> bool:
        if len(self._started) >= self._max_num_seqs or not self._take_blocks(sequence):
            return False
        self._leave_waiting(sequence)
        self._started[sequence.key] = sequence
        self._left_out[sequence.sequence_id] = 0
        self._unticketed.add(sequence.key)
        self._order.correct(sequence.sequence_id, sequence.unplanned)
        return True

    def _leave_waiting(self, sequence: Sequence) -> None:
        if self._waiting.pop(sequence.sequence_id, None) is not None:
            self._waiting_tokens -= sequence.length

    def ticketed(self, key: AttemptKey) -> None:
        """D has room for this prompt."""
        self._unticketed.discard(key)

    def end(self, key: AttemptKey) -> None:
        """The handoff is over, well or not: the blocks stay as cache."""
        self._unticketed.discard(key)
        sequence = self._started.pop(key, None)
        if sequence is None:
            sequence = next((s for s in self._waiting.values() if s.key == key), None)
        if sequence is None:
            return
        self._leave_waiting(sequence)
        self._left_out.pop(sequence.sequence_id, None)
        self._order.remove(sequence.sequence_id)
        if sequence not in self._in_flight:
            self._pool.release(sequence.forget_blocks())

    def key_of(self, sequence_id: int) -> AttemptKey:
        """Whose slice of a step under way this is."""
        return self._in_flight[sequence_id].key

    def block_ids(self, key: AttemptKey) -> BlockIds:
        """Blocks of a started prompt, in order."""
        return self._started[key].block_ids

    def _cached_prefix(self, sequence: Sequence) -> BlockIds:
        """Blocks that hold its first tokens already."""
        # The last token is always computed, so that there are logits to draw from.
        most = (sequence.length - 1) // self._pool.block_size
        return self._pool.match_prefix(sequence.hashes[:most], sequence.tokens)

    def _take_blocks(self, sequence: Sequence) -> bool:
        size = self._pool.block_size
        needed = -(-sequence.length // size)
        if self._unticketed and self._unticketed_blocks() + needed > self._unticketed_limit():
            return False
        held = self._cached_prefix(sequence)
        self._pool.acquire(held)
        fresh = self._pool.allocate(needed - len(held))
        if fresh is None:
            self._pool.release(held)
            return False
        sequence.adopt_prefix(held)
        sequence.add_blocks(fresh)
        sequence.cached_tokens = sequence.computed
        self.counters.prefix_tokens_hit += sequence.computed
        return True

    def _unticketed_blocks(self) -> int:
        return sum(len(self._started[key].block_ids) for key in self._unticketed)

    def _unticketed_limit(self) -> float:
        return UNTICKETED_SHARE * self._pool.num_blocks

    # Steps

    def plan_step(self, now: float) -> StepPlan | None:
        """Chunks of started prompts, up to the token budget."""
        slices: list[Slice] = []
        budget = self._budget
        turns, urgent = self._turns(now)
        while budget and (sequence := self._next_turn(turns, urgent, budget)) is not None:
            count = min(sequence.unplanned, budget)
            slices.append(sequence.plan_slice(count, self._eos))
            budget -= count
            self._in_flight.add(sequence)
            self._order.planned(sequence.sequence_id, count)
        self._note_left_out({piece.sequence_id for piece in slices})
        return StepPlan(tuple(slices)) if slices else None

    def _turns(self, now: float) -> tuple[list[Sequence], set[int]]:
        """Started prompts with tokens in no step yet, the first to compute first, and the ids of
        those that nobody may pass any more."""
        started = {s.sequence_id: s for s in self._started.values()}
        by_id = {number: s for number, s in started.items() if number in self._order}
        if len(by_id) < 2:
            return list(by_id.values()), set()
        order = self._order.sequence_of(by_id, now)
        urgent = {p.number for p in order if p.is_aged}
        urgent |= {n for n, steps in self._left_out.items() if steps >= MAX_STEPS_LEFT_OUT}
        half = self._half_planned
        if half is not None and self._order.oldest_aged in self._waiting:
            # It may have to wait for that one before it can start, but for nobody else with it.
            urgent.add(half.sequence_id)
        turns = [by_id[p.number] for p in order]
        return sorted(turns, key=lambda s: s.sequence_id not in urgent), urgent

    def _next_turn(self, turns: list[Sequence], urgent: set[int], budget: int) -> Sequence | None:
        """The first that ``budget`` tokens complete, or that may be left half computed.

        That is one prompt at a time: so few blocks wait for a turn on both sides. An urgent prompt
        that has to wait for it lends it its turn.
        """
        half = self._half_planned
        for sequence in turns:
            if sequence.unplanned == 0:
                continue
            if half in (None, sequence) or sequence.unplanned <= budget:
                return sequence
            if sequence.sequence_id in urgent:
                return half
        return None

    @property
    def _half_planned(self) -> Sequence | None:
        """The one prompt of which some tokens were planned here, and some were not."""
        started = self._started.values()
        return next((s for s in started if s.cached_tokens < s.planned < s.prompt_length), None)

    def _note_left_out(self, planned: set[int]) -> None:
        for sequence in self._started.values():
            number = sequence.sequence_id
            if sequence.unplanned == 0 or sequence.generated:
                self._left_out.pop(number, None)
            else:
                self._left_out[number] = 0 if number in planned else self._left_out[number] + 1

    def complete_step(self, plan: StepPlan, result: StepResult, seconds: float) -> list[ChunkDone]:
        """Books what a step computed, the oldest one under way, which took ``seconds``."""
        self.counters.steps += 1
        self._order.measured(plan.num_tokens, seconds)
        done = []
        for piece in plan.slices:
            sequence = self._in_flight.remove(piece.sequence_id)
            if self._started.get(sequence.key) is not sequence:
                if sequence not in self._in_flight:
                    self._pool.release(sequence.forget_blocks())
                continue
            self.counters.prefill_tokens_computed += len(piece.tokens)
            sequence.advance(piece.end)
            sequence.publish_full_blocks(self._pool)
            drawn = result.sampled.get(piece.sequence_id, ())
            if drawn:
                sequence.append(drawn[0].token)
            error = result.failed.get(piece.sequence_id, "")
            done.append(ChunkDone(sequence.key, piece.end, drawn, sequence.cached_tokens, error))
        return done

    @property
    def load(self) -> Load:
        """``running`` counts started prompts, those held for D included."""
        unfinished = sum(s.remaining for s in self._started.values() if not s.generated)
        pending = self._waiting_tokens + unfinished
        return Load(len(self._started), len(self._waiting), self._pool.num_available, pending)

    def held_references(self) -> list[BlockIds]:
        """Block ids on which prompts hold references, for invariant checks."""
        alive = {s.sequence_id: s for s in [*self._started.values(), *self._in_flight]}
        return [s.block_ids for s in alive.values()]
