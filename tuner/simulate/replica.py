"""Workers in virtual time: the production objects decide, a latency profile gives the durations.

Covers: the step loop of a replica with its pipeline, what a worker tells the router after each
event and step, ticks when a time limit may be reached. A worker plans its next step when one has
ended, and tells what that one gave when the next is under way, like ``engine.loop`` does.
Does not cover: decisions (``prefill_worker.prefiller``, ``decode_worker.decoder``), what the roles
add (``tuner.simulate.prefill_replica``, ``tuner.simulate.decode_replica``), how messages travel
(``tuner.simulate.network``).
"""

from __future__ import annotations

import abc
from collections import deque
from typing import Any, Generic, TypeVar

from core.block_hash import HashArray
from core.latency_profile import FEMTOSECONDS, StepWork, femtoseconds
from core.lease_events import FailAttempt
from core.outputs import Load, TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey
from core.step import SampledToken, StepPlan, StepResult
from router.placement import WorkerId
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import WorkerModel
from tuner.simulate.identity import drawn_token, request_index
from tuner.simulate.network import Network
from tuner.simulate.pipeline import Pipeline
from tuner.simulate.recorder import GapRecorder, WorkerRecorder
from tuner.simulate.shared_host import SharedHost
from worker.brain import Brain

_TICK = femtoseconds(0.25)
NO_EOS: frozenset[int] = frozenset()

Event = TypeVar("Event")
Command = TypeVar("Command")


class SimulatedReplica(abc.ABC, Generic[Event, Command]):
    """One replica and its shell. ``number``: its place among all workers. ``host``: where
    others compute, too; None if it is alone."""

    brain: Brain[Event, Command]

    def __init__(
        self,
        number: int,
        model: WorkerModel,
        agenda: Agenda,
        network: Network,
        gaps: GapRecorder,
        host: SharedHost | None = None,
    ) -> None:
        self.number = number
        self.role = model.role
        self.name = f"{model.role.value}-{number}"
        self.worker = WorkerId(self.name, 0)
        self.max_num_seqs = model.max_num_seqs
        self.recorder = WorkerRecorder(self.name, model.role, model.num_blocks)
        self._step_model = model.engine.step
        self._share = model.share
        self._host = host
        # When the step that is under way on a shared host began.
        self._started_at: int | None = None
        self._pipeline = Pipeline(model.engine.shape.pipeline)
        self._agenda = agenda
        self._network = network
        self._gaps = gaps
        # Oldest first.
        self._under_way: deque[StepPlan] = deque()
        # When the latest token of each answer that goes on left, by request.
        self._token_at: dict[int, int] = {}
        self._last_load: Load | None = None
        # Whether a step has ended of which nothing has been told yet.
        self._is_completing = False
        self._tick_is_due = False

    @property
    def idle(self) -> bool:
        return self.brain.idle and not self._under_way

    # Events

    def take(self, event: Event) -> None:
        """A message arrives now, or something else happens to this worker."""
        self.catch_up()
        now = self._agenda.now
        commands = self.brain.handle(event, now / FEMTOSECONDS)
        self._carry_out(commands, now)
        self._plan_next(now)
        self._arm_tick()

    def abort(self, key: AttemptKey) -> None:
        """The router gave the attempt up."""
        self._token_at.pop(request_index(key), None)
        self.take(self._abort_event(key))

    def catch_up(self) -> None:
        """Books every step that has ended by now."""

    def steps_may_matter(self, free_blocks: int, needed: int, held: HashArray) -> bool:
        """Whether a decision of the router now may depend on steps that are not booked yet.

        It believes that there are ``free_blocks``, looks for ``needed`` ones, and knows of the
        leading blocks ``held`` (hashes) here.
        """
        del free_blocks, needed, held
        return False

    def sample(self) -> None:
        now, pool = self._agenda.now, self.brain.pool
        self.recorder.sample(now, self.busy, self.brain.load, pool.num_leased)

    @property
    def busy(self) -> int:
        now = self._agenda.now
        under_way = 0 if self._started_at is None else now - self._started_at
        return self._pipeline.busy_until(now) + under_way

    # Steps

    def _plan_next(self, now: int) -> None:
        """Starts a step ``now``, if the first stage is free and there is something to compute."""
        self._plan(now)

    def _plan(self, now: int) -> None:
        pipeline = self._pipeline
        if len(self._under_way) >= pipeline.depth or pipeline.entrance_free_at > now:
            return
        plan = self.brain.plan_step(now / FEMTOSECONDS)
        if plan is None:
            return
        self._under_way.append(plan)
        work = StepWork.of(plan)
        if self._host is not None and self._share is not None:
            self._started_at = now
            on_end = self._on_shared_step_end
            self._host.start(self.number, self._share, self._step_model, work, on_end)
            return
        end = pipeline.enter(now, self._step_model.time(work))
        # Who catches up completes by itself what ends by now.
        if end > self._agenda.now:
            self._agenda.at_step_end(end, self.number, self._on_step_end, None)
        if pipeline.depth > 1:
            free_at = pipeline.entrance_free_at
            self._agenda.at_step_end(free_at, self.number, self._on_entrance_free, None)

    def _on_entrance_free(self, _: None) -> None:
        self._plan(self._agenda.now)

    def _on_shared_step_end(self, _: None) -> None:
        assert self._started_at is not None
        self._pipeline.pass_to(self._started_at, self._agenda.now)
        self._started_at = None
        self._on_step_end(None)

    def _on_step_end(self, _: None) -> None:
        self._complete(self._agenda.now)
        self._arm_tick()

    def _complete(self, now: int) -> None:
        """The oldest step under way ended ``now``."""
        plan = self._under_way.popleft()
        self._go_on(self.brain.complete_step(plan, _drawn(plan), now / FEMTOSECONDS), now)

    def _go_on(self, commands: list[Command], now: int, in_run: bool = False) -> None:
        """A step was booked ``now``. What it gave is told when the next one is under way.

        ``in_run``: each sequence drew a token, the gaps are noted, and ``commands`` hold only the
        tokens that end answers.
        """
        self._is_completing = True
        self._plan_next(now)
        self._is_completing = False
        self._carry_out(commands, now, in_run)

    # What is told

    def _carry_out(self, commands: list[Command], now: int, in_run: bool = False) -> None:
        outputs: list[TokenOutput] = [c for c in commands if isinstance(c, TokenOutput)]
        if not in_run:
            self._note_tokens(outputs, now)
        for output in outputs:
            # Tokens between the first and the last of an answer change nothing at the router.
            if output.first or output.finish is not None:
                self._tell_token(output)
        self._tell_state(in_run or bool(outputs), now)
        for command in commands:
            if not isinstance(command, TokenOutput):
                self._carry_out_one(command)

    def _note_tokens(self, outputs: list[TokenOutput], now: int) -> None:
        token_at = self._token_at
        gaps: dict[int, int] = {}
        for output in outputs:
            index = request_index(output.key)
            if not output.first:
                gap = now - token_at[index]
                gaps[gap] = gaps.get(gap, 0) + 1
            token_at[index] = now
        self._gaps.step(gaps)

    def _tell_token(self, output: TokenOutput) -> None:
        if output.finish is not None:
            del self._token_at[request_index(output.key)]
        self._network.tell_output(self.number, output)

    def _tell_state(self, has_outputs: bool, now: int) -> None:
        """What changed in the cache, and the load if it changed or if tokens go with it."""
        stored, removed = self.brain.pool.drain_events()
        load = self.brain.load
        changed = has_outputs or load != self._last_load
        if changed or len(stored) or len(removed):
            self._last_load = load
            self._network.tell_state(self.number, now, load if changed else None, stored, removed)

    def _fail(self, key: AttemptKey, failure: FailAttempt | ReportFailure) -> None:
        self._token_at.pop(request_index(key), None)
        self._network.tell_failure(self.number, failure)

    # Time limits

    def _arm_tick(self) -> None:
        """Puts a tick down, on the grid of those of production, if one may matter."""
        if self._tick_is_due:
            return
        due = self._next_tick()
        if due is None:
            return
        now = self._agenda.now
        time = max(now + 1, min(femtoseconds(due), now + self._longest_sleep))
        self._tick_is_due = True
        self._agenda.at(-(-time // _TICK) * _TICK, self._on_tick, None)

    def _on_tick(self, _: None) -> None:
        self._tick_is_due = False
        due = self._next_tick()
        if self._minds_no_tick or (due is not None and due <= self._agenda.now_s):
            self.take(self._tick_event())
        else:
            self._arm_tick()

    @property
    def _minds_no_tick(self) -> bool:
        """Whether one costs nothing, though no time limit is reached: it clears memory, too."""
        return True

    @property
    @abc.abstractmethod
    def _longest_sleep(self) -> int:
        """No time limit that is set from now on is reached earlier. Femtoseconds."""

    @abc.abstractmethod
    def _next_tick(self) -> float | None:
        """The first time limit, in seconds; None while there is none."""

    @abc.abstractmethod
    def _tick_event(self) -> Event: ...

    @abc.abstractmethod
    def _abort_event(self, key: AttemptKey) -> Event: ...

    @abc.abstractmethod
    def _carry_out_one(self, command: Any) -> None:
        """Carries out a command that is not a token."""


def _drawn(plan: StepPlan) -> StepResult:
    return StepResult(
        {
            piece.sequence_id: (SampledToken(drawn_token(piece.samples[0].params)),)
            for piece in plan.slices
            if piece.samples
        }
    )
