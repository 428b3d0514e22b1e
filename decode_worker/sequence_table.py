"""The sequences of one decode worker from arrival to end: who waits, who runs, who is over.

Covers: arrivals (prompts to compute here, reserves, committed handoffs), places for those that the
FIFO admits, tokens that extend and end answers, forking the n answers of a prompt, preemption, and
that blocks are given up only when no step under way touches them. Pure: the clock is passed in.
Does not cover: who gets blocks next (``decode_worker.admission``), what a step computes of whom
(``decode_worker.scheduler``), leases (``core.lease``).
"""

from __future__ import annotations

from bisect import insort

from core.block_hash import HashArray, TokenArray, block_hashes
from core.block_pool import BlockIds, BlockPool
from core.in_flight import InFlight
from core.lease_events import Granted, StartSequence
from core.outputs import Load, StepCounters, TokenOutput
from core.prefill_order import DEFAULT_TTFT_S, PrefillOrder
from core.request import AttemptKey, FinishReason, SamplingParams
from core.sequence import Sequence
from core.step import BlockCopy, SampledToken
from decode_worker.admission import AdmissionQueue, WaitingReserve
from decode_worker.fork_copies import ForkCopies


class SequenceTable:
    """Sequences that run, and the FIFO of those that wait. Its owner holds a lock.

    ``ttft``: seconds in which requests want their first token. What steps do is noted here by
    whoever plans and completes them: ``num_planned``, how many were planned so far; ``in_flight``,
    the sequences in those under way; ``prompts``, what this worker computes by itself, until its
    first token; ``forks``, the copies that steps make.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        eos: frozenset[int],
        ttft: float = DEFAULT_TTFT_S,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.eos = eos
        self.counters = StepCounters()
        # Ordered by sequence id, that is by age.
        self.running: list[Sequence] = []
        self.queue = AdmissionQueue(pool, self.counters)
        self.num_planned = 0
        self.in_flight = InFlight()
        self.prompts = PrefillOrder(ttft)
        self.forks = ForkCopies(pool)
        self._next_id = 0
        self._by_key: dict[AttemptKey, list[Sequence]] = {}
        # Leases with blocks: each becomes a running sequence sooner or later.
        self._num_granted = 0

    # Arrivals

    def add_local(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        params: SamplingParams,
        salt: int,
        now: float,
        hashes: HashArray | None = None,
    ) -> None:
        """A prompt that this worker prefills by itself, in chunks; nothing if it has it already."""
        if key in self._by_key:
            return
        sequence = self._new_sequence(key, tokens, params, salt, hashes)
        self.queue.add(sequence)
        self.prompts.add(sequence.sequence_id, sequence.unplanned, now)

    def add_reserve(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        salt: int,
        num_answers: int,
        hashes: HashArray | None = None,
    ) -> None:
        """A handoff waits for blocks, behind all that came before."""
        if hashes is None:
            hashes = block_hashes(tokens, self.pool.block_size, salt)
        self.queue.add(WaitingReserve(key, tokens, salt, num_answers, hashes))

    def remove_reserve(self, key: AttemptKey) -> None:
        self.queue.remove_reserve(key)

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
        sequence.publish_full_blocks(self.pool)
        self._run(sequence)
        self._num_granted -= 1
        return self.append_all(sequence, event.first_tokens)

    def _new_sequence(
        self,
        key: AttemptKey,
        tokens: TokenArray,
        params: SamplingParams,
        salt: int,
        hashes: HashArray | None,
    ) -> Sequence:
        self._next_id += 1
        size = self.pool.block_size
        sequence = Sequence(self._next_id, key, tokens, params, salt, size, hashes)
        self._by_key[key] = [sequence]
        return sequence

    # Places

    def admit(self, num_granted: int) -> list[Granted]:
        """Serves the FIFO while blocks and places last. ``num_granted``: leases with blocks.

        A prompt with n answers needs one place: it may not hold up others until n are free at
        once. Forks without a place wait in the FIFO.
        """
        grants: list[Granted] = []
        self._num_granted = num_granted
        while self.has_place and (admitted := self.queue.admit_next(len(self.running))):
            if isinstance(admitted, Sequence):
                self._run(admitted)
            else:
                grants.append(admitted)
                self._num_granted += 1
        return grants

    @property
    def has_place(self) -> bool:
        """Whether one more sequence may run."""
        return len(self.running) + self._num_granted < self.max_num_seqs

    def _run(self, sequence: Sequence) -> None:
        """From now on steps take it. It queues up behind those that wait for their turn."""
        sequence.last_step = self.num_planned
        if sequence.sequence_id in self.prompts:
            self.prompts.correct(sequence.sequence_id, sequence.unplanned)
        insort(self.running, sequence, key=lambda s: s.sequence_id)

    def preempt(self, sequence: Sequence) -> None:
        """Takes its blocks; it resumes from the head of the FIFO and recomputes.

        Only for one that runs and is in no step under way."""
        self.running.remove(sequence)
        self.give_up_blocks(sequence)
        self.queue.add_first(sequence)
        self.counters.preemptions += 1

    # Answers

    def append_all(self, sequence: Sequence, drawn: tuple[SampledToken, ...]) -> list[TokenOutput]:
        """One token of one answer, or the first tokens of all n, which are forked here."""
        if not drawn:
            return []
        answers = [sequence, *(self._fork(sequence, index) for index in range(1, len(drawn)))]
        return [self.append(answer, token) for answer, token in zip(answers, drawn, strict=True)]

    def append(self, sequence: Sequence, drawn: SampledToken) -> TokenOutput:
        """One token of one answer, which may be its last."""
        first = sequence.length == sequence.prompt_length
        sequence.append(drawn.token)
        return token_output(sequence, drawn, self.finish_if_over(sequence, drawn.token), first)

    def finish_if_over(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Ends the answer if ``token``, its latest, does."""
        finish = sequence.finish_reason(token, self.eos)
        if finish is not None:
            self._finish(sequence)
        return finish

    def _fork(self, sequence: Sequence, index: int) -> Sequence:
        """Another answer: full blocks are shared, the block it will write into becomes its own."""
        self._next_id += 1
        size = self.pool.block_size
        shared = sequence.computed // size
        fork = sequence.fork(self._next_id, index, shared)
        self._by_key[fork.key].append(fork)
        own = self.pool.allocate(sequence.num_blocks - shared) if self.has_place else None
        if own is None:
            # It starts like a preempted sequence, with the prompt's full blocks in the cache.
            fork.forget_blocks()
            self.queue.add(fork)
            return fork
        self.pool.acquire(fork.block_ids)
        fork.add_blocks(own)
        if sequence.computed % size:
            self.forks.plan(fork, BlockCopy(int(sequence.block_ids[shared]), int(own[0])))
        self._run(fork)
        return fork

    # Departures

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
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.queue.remove(sequence)
        self.prompts.remove(sequence.sequence_id)
        if sequence not in self.in_flight:
            self.give_up_blocks(sequence)

    def give_up_blocks(self, sequence: Sequence) -> None:
        """Only for one that is in no step under way."""
        self.forks.drop(sequence)
        self.pool.release(sequence.forget_blocks())

    # What others may know

    @property
    def load(self) -> Load:
        waiting = len(self.queue)
        sequences = [*self.queue.sequences, *self.running] if waiting else self.running
        pending = sum([left for s in sequences if (left := s.length - s.computed) > 1])
        return Load(len(self.running), waiting, self.pool.num_available, pending)

    @property
    def idle(self) -> bool:
        return not self.running and not len(self.queue)

    def held_references(self) -> list[BlockIds]:
        """Block ids on which sequences hold references, for invariant checks."""
        alive = {s.sequence_id: s for s in [*self.running, *self.in_flight]}
        return [*(s.block_ids for s in alive.values()), self.forks.sources]


def token_output(
    sequence: Sequence, drawn: SampledToken, finish: FinishReason | None, first: bool
) -> TokenOutput:
    """What is told of a token. ``first``: of its answer."""
    key, cached, index = sequence.key, sequence.cached_tokens, sequence.index
    return TokenOutput(key, drawn.token, finish, first, cached, index, drawn.logprobs)
