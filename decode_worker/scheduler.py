"""D's scheduler: which sequences compute which tokens in the next step (continuous batching).

Covers: chunked prefill beside decoding, several steps under way at once, forking the n answers
of a prompt, preemption of the youngest sequence when blocks run out. Pure: the clock is passed in.
Does not cover: who gets blocks next (``decode_worker.admission``), which prompt's chunk comes first
(``core.prefill_order``), leases (``core.lease``), computing (``engine``), text (``text``).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from core.block_hash import HashArray, TokenArray, block_hashes
from core.block_pool import BlockIds, BlockPool
from core.errors import InvalidField
from core.handoff import FailureCause
from core.in_flight import InFlight
from core.lease_events import (
    FailAttempt,
    Granted,
    StartSequence,
)
from core.outputs import Load, StepCounters, TokenOutput
from core.prefill_order import DEFAULT_TTFT_S, PrefillOrder
from core.request import AttemptKey, FinishReason, SamplingParams
from core.sequence import Sequence
from core.step import BlockCopy, SampledToken, Slice, StepPlan, StepResult
from decode_worker.admission import AdmissionQueue, WaitingReserve
from decode_worker.fork_copies import ForkCopies
from decode_worker.steady_steps import count_steady_steps, take_and_publish_blocks


@dataclass(slots=True)
class _Step:
    """A step that is being planned. ``budget``: the tokens that it may still take."""

    budget: int
    slices: list[Slice] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)


class DecodeScheduler:
    """Sequences that run, and the FIFO of those that wait. Its owner holds a lock.

    ``depth``: how many steps may be under way at once (the stages of the pipeline). They are
    completed in the order of their plans. ``ttft``: seconds in which requests want their first
    token. ``max_positions``: tokens of the longest sequence that the model can compute, if bounded.
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
        if max_num_batched_tokens < max_num_seqs:
            raise InvalidField(
                "max_num_batched_tokens",
                max_num_batched_tokens,
                f"must be at least max_num_seqs ({max_num_seqs}), one token for each sequence",
            )
        self.counters = StepCounters()
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._eos = eos
        self._depth = depth
        self._max_positions = max_positions
        self._num_planned = 0
        self._next_id = 0
        self._by_key: dict[AttemptKey, list[Sequence]] = {}
        # Ordered by sequence id, that is by age.
        self._running: list[Sequence] = []
        self._queue = AdmissionQueue(pool, self.counters)
        self._in_flight = InFlight()
        # Prompts that this worker computes by itself, until their first token.
        self._prompts = PrefillOrder(ttft)
        self._forks = ForkCopies(pool)
        # Leases with blocks: each becomes a running sequence sooner or later.
        self._num_granted = 0

    # Arrivals and departures

    def check_fits(self, prompt_length: int, params: SamplingParams) -> None:
        """Raises `InvalidField` if the request could not finish even alone on this worker."""
        capacity = self._pool.num_blocks * self._pool.block_size
        if params.n > self._max_num_seqs:
            fix = f"this worker runs at most {self._max_num_seqs} sequences at a time"
            raise InvalidField("n", params.n, fix)
        if prompt_length + params.max_tokens > capacity:
            raise InvalidField(
                "max_tokens",
                params.max_tokens,
                f"prompt ({prompt_length}) + max_tokens may not exceed the {capacity} tokens "
                "that this worker's KV pool holds",
            )
        if self._max_positions is not None and prompt_length + params.max_tokens > (
            self._max_positions
        ):
            raise InvalidField(
                "max_tokens",
                params.max_tokens,
                f"prompt ({prompt_length}) + max_tokens may not exceed the {self._max_positions} "
                "tokens at which this model ends",
            )

    def add_local(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        params: SamplingParams,
        salt: int,
        now: float,
        hashes: HashArray | None = None,
    ) -> None:
        """A prompt that this worker prefills by itself, in chunks."""
        if key in self._by_key:
            return
        self.check_fits(len(tokens), params)
        sequence = self._new_sequence(key, tokens, params, salt, hashes)
        self._queue.add(sequence)
        self._prompts.add(sequence.sequence_id, sequence.unplanned, now)

    def add_reserve(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        salt: int,
        num_answers: int,
        hashes: HashArray | None = None,
    ) -> None:
        if hashes is None:
            hashes = block_hashes(tokens, self._pool.block_size, salt)
        self._queue.add(WaitingReserve(key, tokens, salt, num_answers, hashes))

    def remove_reserve(self, key: AttemptKey) -> None:
        self._queue.remove_reserve(key)

    def start(self, event: StartSequence) -> list[TokenOutput]:
        """A committed handoff becomes n running sequences; their first tokens leave at once."""
        sequence = self._new_sequence(
            event.key, event.tokens, event.params, event.salt, event.hashes
        )
        sequence.adopt_prefix(event.block_ids[: event.held])
        sequence.add_blocks(event.block_ids[event.held :])
        sequence.advance(event.computed)
        sequence.computed_once = len(event.tokens)
        sequence.cached_tokens = event.cached_tokens
        sequence.publish_full_blocks(self._pool)
        self._run(sequence)
        self._num_granted -= 1
        return self._on_tokens(sequence, event.first_tokens)

    def end(self, key: AttemptKey) -> bool:
        """Ends all answers of an attempt from outside (abort). False if none is here."""
        sequences = self._by_key.pop(key, [])
        for sequence in sequences:
            self._leave(sequence)
        return bool(sequences)

    def end_answer(self, key: AttemptKey, index: int) -> None:
        """Ends one answer from outside (stop string)."""
        for sequence in list(self._by_key.get(key, [])):
            if sequence.index == index:
                self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        """One answer is over; with the last one its attempt is."""
        sequences = self._by_key[sequence.key]
        sequences.remove(sequence)
        if not sequences:
            del self._by_key[sequence.key]
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        sequence.ended = True
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._queue.remove(sequence)
        self._prompts.remove(sequence.sequence_id)
        if sequence not in self._in_flight:
            self._give_up_blocks(sequence)

    def _give_up_blocks(self, sequence: Sequence) -> None:
        self._forks.drop(sequence)
        self._pool.release(sequence.forget_blocks())

    # Admission

    def admit(self, num_granted: int) -> list[Granted]:
        """Serves the FIFO while blocks and places last. ``num_granted``: leases with blocks.

        A prompt with n answers needs one place: it may not hold up others until n are free at
        once. Forks without a place wait in the FIFO.
        """
        grants: list[Granted] = []
        self._num_granted = num_granted
        while self._has_place and (admitted := self._queue.admit_next(len(self._running))):
            if isinstance(admitted, Sequence):
                self._run(admitted)
            else:
                grants.append(admitted)
                self._num_granted += 1
        return grants

    @property
    def _has_place(self) -> bool:
        return len(self._running) + self._num_granted < self._max_num_seqs

    def _run(self, sequence: Sequence) -> None:
        """From now on steps take it. It queues up behind those that wait for their turn."""
        sequence.last_step = self._num_planned
        if sequence.sequence_id in self._prompts:
            self._prompts.correct(sequence.sequence_id, sequence.unplanned)
        insort(self._running, sequence, key=lambda s: s.sequence_id)

    # Steps

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
        self._num_planned += 1
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
        if not self._ensure_blocks(sequence, sequence.planned + count):
            return
        step.slices.append(sequence.plan_slice(count, self._eos))
        if self._forks:
            step.copies += self._forks.take(sequence)
        step.budget -= count
        sequence.last_step = self._num_planned
        self._in_flight.add(sequence)
        if sequence.sequence_id in self._prompts:
            self._prompts.planned(sequence.sequence_id, count)

    def _ensure_blocks(self, sequence: Sequence, end: int) -> bool:
        """Blocks for positions below ``end``, if need be from younger sequences.

        A sequence in a step under way keeps its blocks. If all younger ones are in one, this
        sequence waits for the next completion. It comes to no circle of waiting: who waits has
        its turn before those that were in a step meanwhile, and can take their blocks then.
        """
        missing = -(-end // self._pool.block_size) - sequence.num_blocks
        while missing > 0:
            fresh = self._pool.allocate(missing)
            if fresh is not None:
                sequence.add_blocks(fresh)
                return True
            victim = next((s for s in reversed(self._running) if s not in self._in_flight), None)
            if victim is None or (victim is sequence and sequence is not self._running[-1]):
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Takes its blocks; it resumes from the head of the FIFO and recomputes."""
        self._running.remove(sequence)
        self._give_up_blocks(sequence)
        self._queue.add_first(sequence)
        self.counters.preemptions += 1

    def prepare_next(self) -> None:
        """While a step is computed: what can be made of the next one without its tokens."""
        for sequence in self._in_flight:
            if not sequence.ended:
                sequence.prepare_slice(self._eos)

    def complete_step(
        self, plan: StepPlan, result: StepResult, seconds: float
    ) -> list[TokenOutput | FailAttempt]:
        """Books what the oldest step under way computed in so many ``seconds``: new tokens, and
        what went wrong."""
        self.counters.steps += 1
        chunks = [len(piece.tokens) for piece in plan.slices if len(piece.tokens) > 1]
        self._prompts.measured(sum(chunks), seconds)
        self._forks.done(plan)
        outputs: list[TokenOutput | FailAttempt] = []
        size = self._pool.block_size
        for piece in plan.slices:
            sequence = self._in_flight.remove(piece.sequence_id)
            if sequence.ended:
                if sequence not in self._in_flight:
                    self._give_up_blocks(sequence)
            elif piece.sequence_id in result.failed:
                self.end(sequence.key)
                reason = result.failed[piece.sequence_id]
                outputs.append(FailAttempt(sequence.key, FailureCause.INTERNAL, reason))
            else:
                start, end = piece.start, piece.end
                if start < sequence.prompt_length or start < sequence.computed_once:
                    self._count(sequence, start, end)
                sequence.advance(end)
                if end // size > sequence.published:
                    sequence.publish_full_blocks(self._pool)
                drawn = result.sampled.get(piece.sequence_id, ())
                self.counters.decode_tokens += len(drawn)
                if len(drawn) == 1:
                    outputs.append(self._on_token(sequence, drawn[0]))
                else:
                    outputs += self._on_tokens(sequence, drawn)
        return outputs

    def _count(self, sequence: Sequence, start: int, end: int) -> None:
        """Tokens of a prompt, or such as were computed before."""
        again = max(0, min(end, sequence.computed_once) - start)
        self.counters.recomputed_tokens += again
        prompt_end = min(end, sequence.prompt_length)
        self.counters.prefill_tokens_computed += max(0, prompt_end - start - again)

    def _on_tokens(self, sequence: Sequence, drawn: tuple[SampledToken, ...]) -> list[TokenOutput]:
        """One token of one answer, or the first tokens of all n, which are forked here."""
        if not drawn:
            return []
        answers = [sequence, *(self._fork(sequence, index) for index in range(1, len(drawn)))]
        return [self._on_token(answer, token) for answer, token in zip(answers, drawn, strict=True)]

    def _on_token(self, sequence: Sequence, drawn: SampledToken) -> TokenOutput:
        token = drawn.token
        first = sequence.length == sequence.prompt_length
        sequence.append(token)
        return _output(sequence, drawn, self._finish_if_over(sequence, token), first)

    def _finish_if_over(self, sequence: Sequence, token: int) -> FinishReason | None:
        finish = sequence.finish_reason(token, self._eos)
        if finish is not None:
            self._finish(sequence)
        return finish

    def _fork(self, sequence: Sequence, index: int) -> Sequence:
        """Another answer: full blocks are shared, the block it will write into becomes its own."""
        self._next_id += 1
        size = self._pool.block_size
        shared = sequence.computed // size
        fork = sequence.fork(self._next_id, index, shared)
        self._by_key[fork.key].append(fork)
        own = self._pool.allocate(sequence.num_blocks - shared) if self._has_place else None
        if own is None:
            # It starts like a preempted sequence, with the prompt's full blocks in the cache.
            fork.forget_blocks()
            self._queue.add(fork)
            return fork
        self._pool.acquire(fork.block_ids)
        fork.add_blocks(own)
        if sequence.computed % size:
            self._forks.plan(fork, BlockCopy(int(sequence.block_ids[shared]), int(own[0])))
        self._run(fork)
        return fork

    # Many steps at once

    def steady_steps(self) -> int:
        """How many next steps, after a call of `admit`, certainly take all sequences that run now,
        with one token each, and change nothing else; only the last of them may end answers.

        0 if the next step is not like that, and always if several may be under way at once.
        """
        running = self._running
        if self._depth > 1 or self._in_flight or self._forks or not running:
            return 0
        for sequence in running:
            if sequence.length - sequence.computed > 1 or not sequence.generated:
                return 0
        if self._has_place and not self._queue.admits_nobody(len(running)):
            return 0
        return count_steady_steps(running, self._pool, self._queue, self._eos)

    def complete_steady_steps(
        self, steps: int, token_of: Callable[[Sequence], int]
    ) -> list[TokenOutput]:
        """Plans and books ``steps`` steps, 1 to `steady_steps`, in each of which each sequence
        draws its ``token_of``. Returns the tokens that end answers; all belong to the last step."""
        drawn = [(sequence, token_of(sequence)) for sequence in self._running]
        for sequence, token in drawn:
            sequence.append(token, steps)
        take_and_publish_blocks(self._running, self._pool, steps)
        self._num_planned += steps
        self.counters.steps += steps
        self.counters.decode_tokens += steps * len(drawn)
        outputs = []
        for sequence, token in drawn:
            sequence.last_step = self._num_planned
            sequence.advance(sequence.length - 1)
            finish = self._finish_if_over(sequence, token)
            if finish is not None:
                outputs.append(_output(sequence, SampledToken(token), finish, first=False))
        return outputs

    # What others may know

    @property
    def running(self) -> tuple[Sequence, ...]:
        """By age."""
        return tuple(self._running)

    def key_of(self, sequence_id: int) -> AttemptKey:
        """Whose slice of a step under way this is."""
        return self._in_flight[sequence_id].key

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def load(self) -> Load:
        waiting = len(self._queue)
        sequences = [*self._queue.sequences, *self._running] if waiting else self._running
        pending = sum([left for s in sequences if (left := s.length - s.computed) > 1])
        return Load(len(self._running), waiting, self._pool.num_available, pending)

    @property
    def idle(self) -> bool:
        return not self._running and not len(self._queue)

    def held_references(self) -> list[BlockIds]:
        """Block ids on which sequences hold references, for invariant checks."""
        alive = {s.sequence_id: s for s in [*self._running, *self._in_flight]}
        return [*(s.block_ids for s in alive.values()), self._forks.sources]

    def _new_sequence(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        params: SamplingParams,
        salt: int,
        hashes: HashArray | None = None,
    ) -> Sequence:
        self._next_id += 1
        size = self._pool.block_size
        sequence = Sequence(self._next_id, key, tokens, params, salt, size, hashes)
        self._by_key[key] = [sequence]
        return sequence


def _output(
    sequence: Sequence, drawn: SampledToken, finish: FinishReason | None, first: bool
) -> TokenOutput:
    key, cached, index = sequence.key, sequence.cached_tokens, sequence.index
    return TokenOutput(key, drawn.token, finish, first, cached, index, drawn.logprobs)
