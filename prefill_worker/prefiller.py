"""Everything a prefill worker decides: scheduling and one handoff per prompt behind one `handle`.

Covers: how prompts, tickets and computed chunks drive each other, and which commands leave for
the shell (`prefill_worker.service`) or the simulator. Pure: the clock is passed in.
Does not cover: the rules themselves (``core.push``, ``prefill_worker.scheduler``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.block_pool import BlockPool
from core.errors import InvalidField
from core.event_log import EventLog
from core.handoff import (
    Beat,
    Cancel,
    Commit,
    FailureCause,
    LeaseTimes,
    Reserve,
    Ticket,
    ToPrefill,
)
from core.outputs import Load, StepCounters, TokenOutput
from core.phase_clock import ObservePhase
from core.prefill_order import DEFAULT_TTFT_S
from core.push import (
    AnnounceBlocks,
    Push,
    PushCommand,
    Release,
    ReportFailure,
    SendCommit,
    SendReserve,
)
from core.references import check_references, count_orphans
from core.request import AttemptKey, FinishReason, SamplingParams
from core.sequence import finish_reason_of
from core.step import SampledToken, StepPlan, StepResult
from core.step_clock import StepClock
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    AttemptEnded,
    DecodeLost,
    FromDecode,
    PrefillerCommand,
    PrefillerInput,
    SendToDecode,
    Submit,
    Tick,
)
from prefill_worker.phases import HandoffPhases
from prefill_worker.scheduler import ChunkDone, PrefillScheduler


@dataclass(slots=True, eq=False)
class Attempt:
    """One prompt on P."""

    submit: Submit
    push: Push
    cached_tokens: int = 0


class Prefiller:
    """The decisions of one prefill worker. Not thread-safe: its owner holds a lock.

    ``ends_by_text(params, token)`` tells whether the first token completes a stop string.
    ``depth``: how many steps its engine has under way at once. ``ttft``: seconds in which requests
    want their first token. ``max_positions``: see `PrefillScheduler`. ``observe_phase``: see
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
        ends_by_text: Callable[[SamplingParams, int], bool],
        depth: int = 1,
        ttft: float = DEFAULT_TTFT_S,
        max_positions: int | None = None,
        observe_phase: ObservePhase | None = None,
    ) -> None:
        self.pool = pool
        self.events = EventLog()
        self.scheduler = PrefillScheduler(
            pool,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            eos=eos,
            depth=depth,
            ttft=ttft,
            max_positions=max_positions,
        )
        self._eos = eos
        self._times = times
        self._ends_by_text = ends_by_text
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._next_beat = 0.0
        self._clock = StepClock()
        self._phases = HandoffPhases(observe_phase)
        self._longest_step_s = 0.0

    def handle(self, event: PrefillerInput, now: float) -> list[PrefillerCommand]:
        """What follows from an event at monotonic time ``now`` (seconds)."""
        match event:
            case Submit():
                commands = self._on_submit(event, now)
            case Abort(key):
                commands = self._on_abort(key)
            case FromDecode(message):
                commands = self._on_message(message, now)
            case DecodeLost():
                commands = self._on_decode_lost(event)
            case Tick():
                commands = self._on_tick(now)
        return commands + self._start(now)

    def next_tick(self) -> float | None:
        """Before this time (seconds) a `Tick` does nothing; None: as long as nothing happens."""
        pushes = [attempt.push for attempt in self._attempts.values()]
        times = [push.deadline(self._longest_step_s) for push in pushes]
        if any(push.has_ticket for push in pushes):
            times.append(self._next_beat)
        return min(times, default=None)

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None if no prompt waits to be computed."""
        plan = self.scheduler.plan_step(now)
        if plan is None:
            return None
        self._clock.planned(now)
        for piece in plan.slices:
            key = self.scheduler.key_of(piece.sequence_id)
            self.events.add(now, "chunk started", key, f"tokens {piece.start} to {piece.end}")
            self._phases.chunk_started(key, now)
        return plan

    def complete_step(
        self, plan: StepPlan, result: StepResult, now: float
    ) -> list[PrefillerCommand]:
        """Books the oldest step: announces finished blocks, commits finished prompts."""
        time = self._clock.completed(now)
        # So long may a prompt that is computed show no progress.
        self._longest_step_s = max(self._longest_step_s, time.total)
        commands: list[PrefillerCommand] = []
        for chunk in self.scheduler.complete_step(plan, result, time.own):
            commands += self._on_chunk(chunk, now)
        return commands + self._start(now)

    # Events

    def _on_submit(self, event: Submit, now: float) -> list[PrefillerCommand]:
        if event.key in self._attempts:
            return []
        try:
            self.scheduler.add(event.key, event.tokens, event.params, event.salt, now, event.hashes)
        except InvalidField as error:
            return [ReportFailure(event.key, FailureCause.REJECTED, error.message)]
        push = Push(event.key, len(event.tokens), self.pool.block_size, self._times)
        self._attempts[event.key] = Attempt(event, push)
        self._phases.submitted(event.key, now)
        return []

    def _on_abort(self, key: AttemptKey) -> list[PrefillerCommand]:
        attempt = self._attempts.get(key)
        if attempt is None:
            return []
        cancel = SendToDecode(attempt.submit.decode_worker, Cancel(key, "aborted by the router"))
        return [cancel, *self._carry_out(attempt, attempt.push.abandon())]

    def _on_message(self, message: ToPrefill, now: float) -> list[PrefillerCommand]:
        attempt = self._attempts.get(message.key)
        if attempt is None:
            return []
        commands = attempt.push.handle(message, now)
        if isinstance(message, Ticket) and attempt.push.has_ticket:
            self.scheduler.ticketed(message.key)
        self._phases.heard(message, attempt.push.state, now)
        return self._carry_out(attempt, commands)

    def _on_decode_lost(self, event: DecodeLost) -> list[PrefillerCommand]:
        commands: list[PrefillerCommand] = []
        for attempt in list(self._attempts.values()):
            if attempt.submit.decode_worker == event.decode_worker:
                lost = attempt.push.lose(event.cause, event.detail)
                commands += self._carry_out(attempt, lost)
        return commands

    def _on_tick(self, now: float) -> list[PrefillerCommand]:
        commands: list[PrefillerCommand] = []
        for attempt in list(self._attempts.values()):
            lost = attempt.push.on_tick(now, self._longest_step_s)
            if lost:
                cancel = Cancel(attempt.submit.key, "no progress within the lease")
                commands.append(SendToDecode(attempt.submit.decode_worker, cancel))
            commands += self._carry_out(attempt, lost)
        if now >= self._next_beat:
            self._next_beat = now + self._times.beat
            commands += self._beats()
        return commands

    def _beats(self) -> list[PrefillerCommand]:
        by_worker: dict[str, list[tuple[int, int]]] = {}
        for attempt in self._attempts.values():
            if attempt.push.has_ticket:
                progress = (attempt.push.lease_id, attempt.push.computed)
                by_worker.setdefault(attempt.submit.decode_worker, []).append(progress)
        return [
            SendToDecode(worker, Beat(tuple(p), self._longest_step_s))
            for worker, p in by_worker.items()
        ]

    # Progress

    def _start(self, now: float) -> list[PrefillerCommand]:
        commands: list[PrefillerCommand] = []
        for key in self.scheduler.start_next(now):
            attempt = self._attempts[key]
            self._phases.asked(key, now)
            commands += self._carry_out(attempt, attempt.push.ask(now))
        return commands

    def _on_chunk(self, chunk: ChunkDone, now: float) -> list[PrefillerCommand]:
        attempt = self._attempts[chunk.key]
        attempt.cached_tokens = chunk.cached_tokens
        self.events.add(now, "chunk done", chunk.key, f"{chunk.computed} tokens")
        if chunk.error:
            return self._give_up(attempt, chunk.error)
        if chunk.first_tokens:
            self._phases.computed(chunk.key, now)
            finishes = [self._finish_reason(attempt.submit.params, t) for t in chunk.first_tokens]
            ended = tuple(finish for finish in finishes if finish is not None)
            if len(ended) == len(finishes):
                return self._answer_alone(attempt, chunk.first_tokens, ended)
        commands = attempt.push.on_computed(chunk.computed, now)
        if chunk.first_tokens:
            commands += attempt.push.on_sampled(chunk.first_tokens)
            self._phases.transfer_begins(chunk.key, now)
        return self._carry_out(attempt, commands)

    def _give_up(self, attempt: Attempt, error: str) -> list[PrefillerCommand]:
        cancel = SendToDecode(attempt.submit.decode_worker, Cancel(attempt.submit.key, error))
        lost = attempt.push.lose(FailureCause.INTERNAL, error)
        return [cancel, *self._carry_out(attempt, lost)]

    def _finish_reason(self, params: SamplingParams, drawn: SampledToken) -> FinishReason | None:
        by_id = finish_reason_of(drawn.token, 1, params, self._eos)
        if by_id is FinishReason.STOP or params.min_tokens > 1:
            return by_id
        return FinishReason.STOP if self._ends_by_text(params, drawn.token) else by_id

    def _answer_alone(
        self,
        attempt: Attempt,
        first_tokens: tuple[SampledToken, ...],
        finishes: tuple[FinishReason, ...],
    ) -> list[PrefillerCommand]:
        """The first token ends every answer: D is not needed."""
        key = attempt.submit.key
        outputs = [
            TokenOutput(
                key, drawn.token, finish, True, attempt.cached_tokens, index, drawn.logprobs
            )
            for index, (drawn, finish) in enumerate(zip(first_tokens, finishes, strict=True))
        ]
        cancel = SendToDecode(
            attempt.submit.decode_worker, Cancel(key, "answered by the first token")
        )
        self._phases.answered_alone(key)
        return [*outputs, cancel, *self._carry_out(attempt, attempt.push.abandon())]

    def _carry_out(
        self, attempt: Attempt, push_commands: list[PushCommand]
    ) -> list[PrefillerCommand]:
        commands: list[PrefillerCommand] = []
        for command in push_commands:
            commands += self._translate(attempt, command)
        return commands

    def _translate(self, attempt: Attempt, command: PushCommand) -> list[PrefillerCommand]:
        submit = attempt.submit
        match command:
            case SendReserve(key):
                reserve = Reserve(key, submit.tokens, submit.salt, submit.params, submit.hashes)
                return [SendToDecode(submit.decode_worker, reserve)]
            case AnnounceBlocks(key, lease_id, indices):
                return self._announcements(submit.decode_worker, key, lease_id, indices)
            case SendCommit(key, lease_id, first_tokens):
                commit = Commit(key, lease_id, first_tokens, attempt.cached_tokens)
                return [SendToDecode(submit.decode_worker, commit)]
            case Release(key):
                del self._attempts[key]
                self.scheduler.end(key)
                self._phases.forget(key)
                return [AttemptEnded(key)]
            case ReportFailure():
                return [command]

    def _announcements(
        self, worker: str, key: AttemptKey, lease_id: int, indices: tuple[int, ...]
    ) -> list[PrefillerCommand]:
        block_ids = self.scheduler.block_ids(key)
        generations = self.pool.generation(block_ids)
        return [
            AnnouncePieces(
                worker,
                key,
                lease_id,
                first,
                tuple(block_ids[first:end].tolist()),
                tuple(generations[first:end].tolist()),
            )
            for first, end in consecutive_runs(indices)
        ]

    @property
    def load(self) -> Load:
        return self.scheduler.load

    @property
    def counters(self) -> StepCounters:
        return self.scheduler.counters

    @property
    def num_leases(self) -> int:
        """Prompts on P whose handoff is not over."""
        return len(self._attempts)

    @property
    def num_orphans(self) -> int:
        """Blocks that no prompt holds and nobody can have."""
        return count_orphans(self.pool, self.scheduler.held_references())

    @property
    def decode_workers(self) -> set[str]:
        """Those to which some prompt on P is to be handed over."""
        return {attempt.submit.decode_worker for attempt in self._attempts.values()}

    @property
    def idle(self) -> bool:
        return not self._attempts

    def validate(self) -> None:
        """Raises `InternalError` if any invariant of pool or prompts is broken."""
        self.pool.validate()
        check_references(self.pool, self.scheduler.held_references())


def consecutive_runs(indices: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, end) of each run of consecutive numbers in ascending ``indices``."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs
