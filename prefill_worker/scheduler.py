"""P's scheduler: which prompts are computed, in which chunks. Pure: no clock, no I/O.

Covers: first come, first served over prompts; own blocks before D's; the bound on prompts that
hold blocks without a ticket; chunks within the token budget of a step, several of one prompt
under way at once; blocks held until the handoff is over and no step under way touches them.
Does not cover: the handoff (``core.push``), computing (``engine``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from core.block_hash import TokenArray, block_hashes
from core.block_pool import BlockIds, BlockPool
from core.errors import InvalidField
from core.in_flight import InFlight
from core.outputs import Load, StepCounters
from core.request import AttemptKey, SamplingParams
from core.sequence import Sequence
from core.step import SampledToken, Slice, StepPlan, StepResult

# Prompts without a ticket may hold this share of the pool, so that D's refusal to take them
# can never stop those that D did take (DESIGN 6).
UNTICKETED_SHARE = 0.3


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
    completed in the order of their plans.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos: frozenset[int],
        depth: int = 1,
    ) -> None:
        self.counters = StepCounters()
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._eos = eos
        self._depth = depth
        self._next_id = 0
        self._waiting: deque[Sequence] = deque()
        # Started prompts, oldest first: being computed, or complete and held for D.
        self._started: dict[AttemptKey, Sequence] = {}
        self._unticketed: set[AttemptKey] = set()
        self._in_flight = InFlight()

    def add(self, key: AttemptKey, tokens: TokenArray, params: SamplingParams, salt: int) -> None:
        """Queues a prompt. Raises `InvalidField` if this pool can never hold it."""
        needed = -(-len(tokens) // self._pool.block_size)
        if needed > self._pool.num_blocks:
            raise InvalidField(
                "prompt",
                f"{len(tokens)} tokens",
                f"this prefill worker's KV pool holds "
                f"{self._pool.num_blocks * self._pool.block_size} tokens",
            )
        self._next_id += 1
        self._waiting.append(
            Sequence(self._next_id, key, tokens, params, salt, self._pool.block_size)
        )

    def start_next(self) -> list[AttemptKey]:
        """Gives blocks to waiting prompts in order; returns those that start now."""
        started = []
        while self._waiting and len(self._started) < self._max_num_seqs:
            if not self._take_blocks(self._waiting[0]):
                break
            sequence = self._waiting.popleft()
            self._started[sequence.key] = sequence
            self._unticketed.add(sequence.key)
            started.append(sequence.key)
        return started

    def due(self) -> list[AttemptKey]:
        """Prompts that the steps under way or the next one compute: time to reserve on D.

        Earlier would pin D's blocks, and start the clock of their leases, for prompts that only
        wait their turn here.
        """
        ahead = 0
        keys = []
        for key, sequence in self._started.items():
            if ahead >= (self._depth + 1) * self._budget:
                break
            keys.append(key)
            ahead += 0 if sequence.generated else sequence.remaining
        return keys

    def ticketed(self, key: AttemptKey) -> None:
        """D has room for this prompt."""
        self._unticketed.discard(key)

    def end(self, key: AttemptKey) -> None:
        """The handoff is over, well or not: the blocks stay as cache."""
        self._unticketed.discard(key)
        sequence = self._started.pop(key, None)
        if sequence is None:
            self._waiting = deque(s for s in self._waiting if s.key != key)
        elif sequence not in self._in_flight:
            self._pool.release(sequence.forget_blocks())

    def key_of(self, sequence_id: int) -> AttemptKey:
        """Whose slice of a step under way this is."""
        return self._in_flight[sequence_id].key

    def block_ids(self, key: AttemptKey) -> BlockIds:
        """Blocks of a started prompt, in order."""
        return self._started[key].block_ids

    def _take_blocks(self, sequence: Sequence) -> bool:
        size = self._pool.block_size
        needed = -(-sequence.length // size)
        if self._unticketed and self._unticketed_blocks() + needed > self._unticketed_limit():
            return False
        hashes = block_hashes(sequence.tokens, size, sequence.salt)
        # The last token is always computed, so that there are logits to draw from.
        held = self._pool.match_prefix(hashes[: (sequence.length - 1) // size], sequence.tokens)
        self._pool.acquire(held)
        fresh = self._pool.allocate(needed - len(held))
        if fresh is None:
            self._pool.release(held)
            return False
        sequence.adopt_prefix(held, hashes, size)
        sequence.add_blocks(fresh)
        sequence.cached_tokens = sequence.computed
        self.counters.prefix_tokens_hit += sequence.computed
        return True

    def _unticketed_blocks(self) -> int:
        return sum(len(self._started[key].block_ids) for key in self._unticketed)

    def _unticketed_limit(self) -> float:
        return UNTICKETED_SHARE * self._pool.num_blocks

    def plan_step(self) -> StepPlan | None:
        """Chunks of the oldest unfinished prompts, up to the token budget."""
        slices: list[Slice] = []
        budget = self._budget
        for sequence in self._started.values():
            count = min(sequence.unplanned, budget)
            if count == 0 or sequence.generated:
                continue
            slices.append(sequence.plan_slice(count, self._eos))
            self._in_flight.add(sequence)
            budget -= count
            if budget == 0:
                break
        return StepPlan(tuple(slices)) if slices else None

    def complete_step(self, plan: StepPlan, result: StepResult) -> list[ChunkDone]:
        """Books what a step computed, the oldest one under way."""
        self.counters.steps += 1
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
        unfinished = [s for s in self._started.values() if not s.generated]
        pending = sum(s.remaining for s in [*self._waiting, *unfinished])
        return Load(len(self._started), len(self._waiting), self._pool.num_available, pending)

    def held_references(self) -> list[BlockIds]:
        """Block ids on which prompts hold references, for invariant checks."""
        alive = {s.sequence_id: s for s in [*self._started.values(), *self._in_flight]}
        return [s.block_ids for s in alive.values()]
