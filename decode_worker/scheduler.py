"""D's scheduler: which sequences compute which tokens in the next step (continuous batching).

Covers: whose turn it is, chunked prefill beside decoding, blocks for what a step writes and who is
preempted for them, several steps under way at once, booking what they computed. Pure: the clock is
passed in.
Does not cover: who is here and how answers end (``decode_worker.sequence_table``), which prompt's
chunk comes first (``core.prefill_order``), many steps at once (``decode_worker.steady_steps``),
computing (``engine``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from core.errors import InvalidField
from core.handoff import FailureCause
from core.lease_events import FailAttempt
from core.outputs import TokenOutput
from core.sequence import Sequence
from core.step import BlockCopy, Slice, StepPlan, StepResult
from decode_worker.sequence_table import SequenceTable


@dataclass(slots=True)
class _Step:
    """A step that is being planned. ``budget``: the tokens that it may still take."""

    budget: int
    slices: list[Slice] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)


class DecodeScheduler:
    """Steps of the sequences that run. Its owner holds a lock.

    ``depth``: how many steps may be under way at once (the stages of the pipeline). They are
    completed in the order of their plans.
    """

    def __init__(
        self, sequences: SequenceTable, *, max_num_batched_tokens: int, depth: int = 1
    ) -> None:
        if max_num_batched_tokens < sequences.max_num_seqs:
            raise InvalidField(
                "max_num_batched_tokens",
                max_num_batched_tokens,
                f"must be at least max_num_seqs ({sequences.max_num_seqs}), "
                "one token for each sequence",
            )
        self._sequences = sequences
        # Its parts by a name of their own: each token of each step passes here.
        self._pool = sequences.pool
        self._running = sequences.running
        self._in_flight = sequences.in_flight
        self._prompts = sequences.prompts
        self._forks = sequences.forks
        self._eos = sequences.eos
        self._budget = max_num_batched_tokens
        self._depth = depth

    # The next step

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step: one token of every decoding sequence, then prefill chunks.

        Of these, what preempted sequences compute again comes first: their streams stand still.

        With several steps under way each takes its share of the decoding sequences, so that every
        stage of the pipeline has something to do.
        """
        decoding = [s for s in self._running if s.length - s.computed == 1]
        share = -(-len(decoding) // self._depth)
        # Those that waited longest have their turn; with one step at a time that is all of them.
        turns = sorted(decoding, key=attrgetter("last_step"))
        step = _Step(self._budget)
        self._sequences.num_planned += 1
        for sequence in turns:
            if len(step.slices) < share:
                self._plan(sequence, step)
        for sequence in self._prefilling(now):
            self._plan(sequence, step)
        return StepPlan(tuple(step.slices), tuple(step.copies)) if step.slices else None

    def _prefilling(self, now: float) -> list[Sequence]:
        """Sequences with more than a token to compute, the first to compute first."""
        prefilling = {s.sequence_id: s for s in self._running if s.length - s.computed > 1}
        if len(prefilling) < 2:
            return list(prefilling.values())
        again = [s for s in prefilling.values() if s.sequence_id not in self._prompts]
        return [*again, *(prefilling[p.number] for p in self._prompts.sequence_of(prefilling, now))]

    def _plan(self, sequence: Sequence, step: _Step) -> None:
        """Adds what is to be computed of a sequence, unless it was preempted on the way."""
        count = min(sequence.length - sequence.planned, step.budget)
        # One that runs has blocks.
        if count == 0 or sequence.num_blocks == 0:
            return
        end = sequence.planned + count
        missing = -(-end // self._pool.block_size) - sequence.num_blocks
        if missing > 0 and not self._take_blocks(sequence, missing):
            return
        step.slices.append(sequence.plan_slice(count, self._eos))
        if self._forks:
            step.copies += self._forks.take(sequence)
        step.budget -= count
        sequence.last_step = self._sequences.num_planned
        self._in_flight.add(sequence)
        if sequence.sequence_id in self._prompts:
            self._prompts.planned(sequence.sequence_id, count)

    def _take_blocks(self, sequence: Sequence, count: int) -> bool:
        """So many more blocks, if need be from younger sequences.

        A sequence in a step under way keeps its blocks. If all younger ones are in one, this
        sequence waits for the next completion. It comes to no circle of waiting: who waits has
        its turn before those that were in a step meanwhile, and can take their blocks then.
        """
        while (fresh := self._pool.allocate(count)) is None:
            victim = self._youngest_at_rest
            if victim is None or (victim is sequence and sequence is not self._running[-1]):
                return False
            self._sequences.preempt(victim)
            if victim is sequence:
                return False
        sequence.add_blocks(fresh)
        return True

    @property
    def _youngest_at_rest(self) -> Sequence | None:
        """Of those that run and are in no step under way."""
        return next((s for s in reversed(self._running) if s not in self._in_flight), None)

    def prepare_next(self) -> None:
        """While a step is computed: what can be made of the next one without its tokens."""
        for sequence in self._in_flight:
            if not sequence.ended:
                sequence.prepare_slice(self._eos)

    # What a step computed

    def complete_step(
        self, plan: StepPlan, result: StepResult, seconds: float
    ) -> list[TokenOutput | FailAttempt]:
        """Books what the oldest step under way computed in so many ``seconds``: new tokens, and
        what went wrong."""
        sequences = self._sequences
        sequences.counters.steps += 1
        chunks = [len(piece.tokens) for piece in plan.slices if len(piece.tokens) > 1]
        self._prompts.measured(sum(chunks), seconds)
        self._forks.done(plan)
        outputs: list[TokenOutput | FailAttempt] = []
        for piece in plan.slices:
            sequence = self._in_flight.remove(piece.sequence_id)
            if sequence.ended:
                if sequence not in self._in_flight:
                    sequences.give_up_blocks(sequence)
            elif piece.sequence_id in result.failed:
                sequences.end(sequence.key)
                reason = result.failed[piece.sequence_id]
                outputs.append(FailAttempt(sequence.key, FailureCause.INTERNAL, reason))
            else:
                self._book(sequence, piece)
                drawn = result.sampled.get(piece.sequence_id, ())
                sequences.counters.decode_tokens += len(drawn)
                if len(drawn) == 1:
                    outputs.append(sequences.append(sequence, drawn[0]))
                else:
                    outputs += sequences.append_all(sequence, drawn)
        return outputs

    def _book(self, sequence: Sequence, piece: Slice) -> None:
        """The KV of a slice is in place."""
        start, end = piece.start, piece.end
        if start < sequence.prompt_length or start < sequence.computed_once:
            self._count(sequence, start, end)
        sequence.advance(end)
        if end // self._pool.block_size > sequence.published:
            sequence.publish_full_blocks(self._pool)

    def _count(self, sequence: Sequence, start: int, end: int) -> None:
        """Tokens of a prompt, or such as were computed before."""
        counters = self._sequences.counters
        again = max(0, min(end, sequence.computed_once) - start)
        counters.recomputed_tokens += again
        prompt_end = min(end, sequence.prompt_length)
        counters.prefill_tokens_computed += max(0, prompt_end - start - again)
