"""Everything a decode worker decides: leases, sequences and steps behind one `handle`.

Covers: how leases and sequences share one block pool, and which commands leave for the shell
(`decode_worker.service`) or the simulator. Pure: the clock is passed in.
Does not cover: the rules themselves (``core.lease``, ``decode_worker.sequence_table``,
``decode_worker.scheduler``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.block_hash import HashArray, TokenArray
from core.block_pool import BlockIds, BlockPool
from core.errors import InternalError, InvalidField
from core.event_log import EventLog
from core.handoff import FailureCause, LeaseLost, LeaseTimes, NoRoom, Reserve, Ticket
from core.lease import LeaseTable
from core.lease_events import (
    Aborted,
    CopyPieces,
    DequeueReserve,
    EnqueueReserve,
    FailAttempt,
    FromPrefill,
    LeaseCommand,
    LeaseInput,
    SendToPrefill,
    StartSequence,
)
from core.outputs import Load, StepCounters, TokenOutput
from core.phase_clock import ObservePhase
from core.prefill_order import DEFAULT_TTFT_S
from core.references import check_references, count_orphans
from core.request import AttemptKey, SamplingParams
from core.sequence import Sequence
from core.step import StepPlan, StepResult
from core.step_clock import StepClock
from core.values import value
from decode_worker.phases import LeasePhases, LocalPhases
from decode_worker.request_limits import RequestLimits
from decode_worker.scheduler import DecodeScheduler
from decode_worker.sequence_table import SequenceTable
from decode_worker.steady_steps import SteadySteps


@value(eq=False)
class PrefillHere:
    """The router wants this worker to prefill the prompt by itself (a LOCAL attempt).

    ``hashes``: of all full blocks of the prompt, from who has computed them already; no wire
    carries them.
    """

    key: AttemptKey
    tokens: TokenArray
    params: SamplingParams
    salt: int
    hashes: HashArray | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The text of one of the answers reached a stop string: compute no more of it."""

    key: AttemptKey
    index: int = 0


DecoderInput = LeaseInput | PrefillHere | Stopped
DecoderCommand = SendToPrefill | CopyPieces | FailAttempt | TokenOutput


class Decoder:
    """The decisions of one decode worker. Not thread-safe: its owner holds a lock.

    ``depth``: how many steps its engine has under way at once. ``ttft``: seconds in which requests
    want their first token. ``max_positions``: see `RequestLimits`. ``observe_phase``: see
    `PhaseClock`.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos: frozenset[int],
        times: LeaseTimes,
        new_lease_id: Callable[[], int],
        depth: int = 1,
        ttft: float = DEFAULT_TTFT_S,
        max_positions: int | None = None,
        observe_phase: ObservePhase | None = None,
    ) -> None:
        self.pool = pool
        self.events = EventLog()
        self.leases = LeaseTable(pool, times, new_lease_id)
        self.sequences = SequenceTable(pool, max_num_seqs=max_num_seqs, eos=eos, ttft=ttft)
        self._scheduler = DecodeScheduler(
            self.sequences, max_num_batched_tokens=max_num_batched_tokens, depth=depth
        )
        self._steady = SteadySteps(self.sequences, depth)
        pool_tokens = pool.num_blocks * pool.block_size
        self._limits = RequestLimits(max_num_seqs, pool_tokens, max_positions)
        self._clock = StepClock()
        self._lease_phases = LeasePhases(observe_phase)
        self._local_phases = LocalPhases(observe_phase)

    def concerns_only_leases(self, event: DecoderInput) -> bool:
        """Whether `handle` would do the same whatever the sequences did meanwhile, and change
        nothing for them."""
        if isinstance(event, PrefillHere | Stopped):
            return False
        return self.leases.keeps_to_itself(event)

    def handle(self, event: DecoderInput, now: float) -> list[DecoderCommand]:
        """What follows from an event at monotonic time ``now`` (seconds)."""
        match event:
            case PrefillHere():
                commands = self._prefill_here(event, now)
            case Stopped(key, index):
                self.sequences.end_answer(key, index)
                commands = []
            case Aborted(key) if self.sequences.end(key):
                self._local_phases.forget(key)
                commands = []
            case FromPrefill(peer, Reserve() as reserve):
                commands = self._reserve(peer, reserve, now)
            case _:
                commands = self._handle_lease(event, now)
        return commands + self._admit(now)

    def next_tick(self) -> float | None:
        """Before this time (seconds) a `Tick` ends no lease; None: as long as nothing happens."""
        return self.leases.next_deadline()

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing can run."""
        plan = self._scheduler.plan_step(now)
        if plan is not None:
            self._clock.planned(now)
            if self._local_phases:
                in_flight = self.sequences.in_flight
                keys = (in_flight[piece.sequence_id].key for piece in plan.slices)
                self._local_phases.planned(keys, now)
        return plan

    def prepare_next(self) -> None:
        """To be called while a step is computed; see `DecodeScheduler.prepare_next`."""
        self._scheduler.prepare_next()

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> list[DecoderCommand]:
        """Books a step; returns its tokens and what became possible by the blocks it freed."""
        seconds = self._clock.completed(now).own
        outputs = self._scheduler.complete_step(plan, result, seconds)
        if self._local_phases:
            self._local_phases.computed(outputs, now)
        return [*outputs, *self._admit(now)]

    def steady_steps(self) -> int:
        """See `SteadySteps.count`; valid until the next event or step."""
        return self._steady.count()

    def complete_steady_steps(
        self, steps: int, token_of: Callable[[Sequence], int], now: float
    ) -> list[DecoderCommand]:
        """Plans and books that many steps, the last of which is complete ``now``, as so many calls
        of `plan_step` and `complete_step` do. Returns the tokens that end answers, and what became
        possible by them."""
        self._clock.planned(now)
        self._clock.completed(now)
        outputs = self._steady.complete(steps, token_of)
        return [*outputs, *self._admit(now)]

    def _reserve(self, peer: str, reserve: Reserve, now: float) -> list[DecoderCommand]:
        try:
            self._limits.check(len(reserve.tokens), reserve.params)
        except InvalidField as error:
            return [SendToPrefill(peer, LeaseLost(reserve.key, 0, error.message))]
        return self._handle_lease(FromPrefill(peer, reserve), now)

    def _prefill_here(self, event: PrefillHere, now: float) -> list[DecoderCommand]:
        try:
            self._limits.check(len(event.tokens), event.params)
        except InvalidField as error:
            return [FailAttempt(event.key, FailureCause.REJECTED, error.message)]
        self.sequences.add_local(
            event.key, event.tokens, event.params, event.salt, now, event.hashes
        )
        self._local_phases.submitted(event.key, now)
        return []

    def _admit(self, now: float) -> list[DecoderCommand]:
        commands: list[DecoderCommand] = []
        for grant in self.sequences.admit(self.leases.num_granted):
            commands += self._handle_lease(grant, now)
        return commands

    def _handle_lease(self, event: LeaseInput, now: float) -> list[DecoderCommand]:
        commands: list[DecoderCommand] = []
        self._lease_phases.heard(event, now)
        for command in self.leases.handle(event, now):
            self._log(command, now)
            self._lease_phases.decided(command, now)
            match command:
                case EnqueueReserve(key, tokens, salt, num_answers, hashes):
                    self.sequences.add_reserve(key, tokens, salt, num_answers, hashes)
                case DequeueReserve(key):
                    self.sequences.remove_reserve(key)
                case StartSequence():
                    commands += self.sequences.start(command)
                case _:
                    commands.append(command)
        return commands

    def _log(self, command: LeaseCommand, now: float) -> None:
        match command:
            case SendToPrefill(_, Ticket(key, _, held)):
                self.events.add(now, "granted", key, f"{held} blocks held already")
            case SendToPrefill(_, NoRoom(key, detail)):
                self.events.add(now, "no room", key, detail)
            case SendToPrefill(_, LeaseLost(key, _, reason)):
                self.events.add(now, "lease lost", key, reason)
            case CopyPieces(key, _, _, copies):
                first, last = copies[0].index, copies[-1].index
                self.events.add(now, "blocks received", key, f"blocks {first} to {last}")
            case StartSequence(key=key):
                self.events.add(now, "committed", key)
            case FailAttempt(key, cause, detail):
                self.events.add(now, "attempt failed", key, f"{cause.value}: {detail}")

    @property
    def load(self) -> Load:
        return self.sequences.load

    @property
    def counters(self) -> StepCounters:
        return self.sequences.counters

    @property
    def num_leases(self) -> int:
        return self.leases.num_leases

    @property
    def idle(self) -> bool:
        """No sequence, lease, copy, or attempt that waits for its prompt is left."""
        leases = self.leases
        promised = leases.num_leases + leases.num_open + leases.num_draining
        return self.sequences.idle and promised == 0

    @property
    def num_orphans(self) -> int:
        """Blocks that no sequence, lease or copy holds and nobody can have."""
        forgotten = 0 if self.leases.num_draining else self.pool.num_quarantined
        return count_orphans(self.pool, self._held_references) + forgotten

    @property
    def _held_references(self) -> list[BlockIds]:
        return [*self.sequences.held_references(), *self.leases.held_references()]

    def validate(self) -> None:
        """Raises `InternalError` if any invariant of pool, leases or sequences is broken."""
        self.pool.validate()
        self.leases.validate()
        check_references(self.pool, self._held_references)
        if self.pool.num_quarantined and not self.leases.num_draining:
            raise InternalError("blocks in quarantine without a copy", reason="INVARIANT")
