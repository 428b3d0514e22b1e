"""Workers in virtual time: the production objects decide, a latency profile gives the durations.

Covers: the step loop of a replica with its pipeline, what a worker tells the router after each
event and step, ticks when a time limit may be reached. A worker plans its next step when one has
ended, and tells what that one gave when the next is under way, like ``engine.loop`` does.
Does not cover: decisions (``prefill_worker.prefiller``, ``decode_worker.decoder``), how messages
travel (``tuner.simulate.network``).
"""

from __future__ import annotations

import abc
from collections import Counter, deque
from itertools import count
from typing import Any, Generic, TypeVar

from core.block_pool import BlockPool
from core.handoff import Announce, Piece
from core.latency_profile import StepWork, femtoseconds
from core.lease_events import Aborted, CopyPieces, FailAttempt, SendToPrefill
from core.lease_events import Tick as LeaseTick
from core.outputs import Load, TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey
from core.step import SampledToken, StepPlan, StepResult
from decode_worker.decoder import Decoder, DecoderCommand, DecoderInput
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    PrefillerCommand,
    PrefillerInput,
    SendToDecode,
)
from prefill_worker.messages import Tick as PrefillTick
from prefill_worker.prefiller import Prefiller
from router.placement import WorkerId
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.identity import drawn_token, request_index
from tuner.simulate.network import Network
from tuner.simulate.pipeline import Pipeline
from tuner.simulate.recorder import GapRecorder, WorkerRecorder
from worker.brain import Brain

_TICK = femtoseconds(0.25)
_NO_EOS: frozenset[int] = frozenset()

Event = TypeVar("Event")
Command = TypeVar("Command")


class SimulatedWorker(abc.ABC, Generic[Event, Command]):
    """One replica and its shell. ``number``: its place among all workers."""

    brain: Brain[Event, Command]

    def __init__(
        self, number: int, model: WorkerModel, agenda: Agenda, network: Network, gaps: GapRecorder
    ) -> None:
        self.number = number
        self.role = model.role
        self.name = f"{model.role.value}-{number}"
        self.worker = WorkerId(self.name, 0)
        self.max_num_seqs = model.max_num_seqs
        self.recorder = WorkerRecorder(self.name, model.role, model.num_blocks)
        self._step_model = model.engine.step
        self._pipeline = Pipeline(model.engine.shape.pipeline)
        self._agenda = agenda
        self._network = network
        self._gaps = gaps
        # Oldest first.
        self._under_way: deque[StepPlan] = deque()
        # When the latest token of each answer that goes on left, by request.
        self._token_at: dict[int, int] = {}
        self._last_load: Load | None = None
        self._tick_is_due = False

    @property
    def idle(self) -> bool:
        return self.brain.idle and not self._under_way

    # Events

    def take(self, event: Event) -> None:
        """A message arrives now, or something else happens to this worker."""
        commands = self.brain.handle(event, self._agenda.now_s)
        self._carry_out(commands)
        self._plan()
        self._arm_tick()

    def abort(self, key: AttemptKey) -> None:
        """The router gave the attempt up."""
        self._token_at.pop(request_index(key), None)
        self.take(self._abort_event(key))

    def sample(self) -> None:
        busy = self._pipeline.busy_until(self._agenda.now)
        self.recorder.sample(self._agenda.now, busy, self.brain.load, self.brain.pool.num_leased)

    @property
    def busy(self) -> int:
        return self._pipeline.busy

    # Steps

    def _plan(self) -> None:
        """Starts a step, if the first stage is free and there is something to compute."""
        agenda, pipeline = self._agenda, self._pipeline
        if len(self._under_way) >= pipeline.depth or pipeline.entrance_free_at > agenda.now:
            return
        plan = self.brain.plan_step(agenda.now_s)
        if plan is None:
            return
        self._under_way.append(plan)
        end = pipeline.enter(agenda.now, self._step_model.time(StepWork.of(plan)))
        agenda.at_step_end(end, self.number, self._on_step_end, None)
        if pipeline.depth > 1:
            agenda.at_step_end(pipeline.entrance_free_at, self.number, self._on_entrance_free, None)

    def _on_entrance_free(self, _: None) -> None:
        self._plan()

    def _on_step_end(self, _: None) -> None:
        plan = self._under_way.popleft()
        commands = self.brain.complete_step(plan, _drawn(plan), self._agenda.now_s)
        # What the step gave is told when the next one is under way.
        self._plan()
        self._carry_out(commands)
        self._arm_tick()

    # What is told

    def _carry_out(self, commands: list[Command]) -> None:
        outputs: list[TokenOutput] = [c for c in commands if isinstance(c, TokenOutput)]
        if outputs:
            self._tell_tokens(outputs)
        self._tell_load(bool(outputs))
        for command in commands:
            if not isinstance(command, TokenOutput):
                self._carry_out_one(command)

    def _tell_tokens(self, outputs: list[TokenOutput]) -> None:
        """Tokens between the first and the last of an answer change nothing at the router."""
        now, token_at = self._agenda.now, self._token_at
        gaps: Counter[int] = Counter()
        for output in outputs:
            index = request_index(output.key)
            if output.first:
                token_at[index] = now
            else:
                gaps[now - token_at[index]] += 1
                token_at[index] = now
            if output.finish is not None:
                del token_at[index]
            if output.first or output.finish is not None:
                self._network.tell_output(self.number, output)
        self._gaps.step(gaps)

    def _tell_load(self, has_outputs: bool) -> None:
        stored, removed = self.brain.pool.drain_events()
        load = self.brain.load
        changed = has_outputs or load != self._last_load
        if changed or len(stored) or len(removed):
            self._last_load = load
            self._network.tell_state(self.number, load if changed else None, stored, removed)

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
        if due is not None and due <= self._agenda.now_s:
            self.take(self._tick_event())
        else:
            self._arm_tick()

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


class PrefillReplica(SimulatedWorker[PrefillerInput, PrefillerCommand]):
    """A prefill worker."""

    def __init__(
        self,
        number: int,
        model: WorkerModel,
        cluster: ClusterModel,
        agenda: Agenda,
        network: Network,
        gaps: GapRecorder,
    ) -> None:
        super().__init__(number, model, agenda, network, gaps)
        self.prefiller = Prefiller(
            BlockPool(model.num_blocks, cluster.block_size),
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            eos=_NO_EOS,
            times=cluster.times,
            ends_by_text=lambda params, token: False,
            depth=model.engine.shape.pipeline,
            ttft=cluster.ttft_s,
        )
        self.brain = self.prefiller
        self._beat = femtoseconds(cluster.times.beat)

    @property
    def _longest_sleep(self) -> int:
        return self._beat

    def _next_tick(self) -> float | None:
        return self.prefiller.next_tick()

    def _tick_event(self) -> PrefillerInput:
        return PrefillTick()

    def _abort_event(self, key: AttemptKey) -> PrefillerInput:
        return Abort(key)

    def _carry_out_one(self, command: Any) -> None:
        match command:
            case SendToDecode(worker, message):
                self._network.to_decode(self.name, worker, message)
            case AnnouncePieces(worker, key, lease_id, first, block_ids, generations):
                pieces = tuple(map(_piece, block_ids, generations))
                self._network.to_decode(self.name, worker, Announce(key, lease_id, first, pieces))
            case ReportFailure():
                self._fail(command.key, command)


class DecodeReplica(SimulatedWorker[DecoderInput, DecoderCommand]):
    """A decode or a mixed worker."""

    def __init__(
        self,
        number: int,
        model: WorkerModel,
        cluster: ClusterModel,
        agenda: Agenda,
        network: Network,
        gaps: GapRecorder,
    ) -> None:
        super().__init__(number, model, agenda, network, gaps)
        lease_ids = count(1)
        self.decoder = Decoder(
            BlockPool(model.num_blocks, cluster.block_size),
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            eos=_NO_EOS,
            times=cluster.times,
            new_lease_id=lambda: next(lease_ids),
            depth=model.engine.shape.pipeline,
            ttft=cluster.ttft_s,
        )
        self.brain = self.decoder
        self._shortest_limit = femtoseconds(min(cluster.times.no_room, cluster.times.open))

    @property
    def _longest_sleep(self) -> int:
        return self._shortest_limit

    def _next_tick(self) -> float | None:
        return self.decoder.next_tick()

    def _tick_event(self) -> DecoderInput:
        return LeaseTick()

    def _abort_event(self, key: AttemptKey) -> DecoderInput:
        return Aborted(key)

    def _carry_out_one(self, command: Any) -> None:
        match command:
            case SendToPrefill(peer, message):
                self._network.to_prefill(peer, message)
            case CopyPieces():
                self._network.copy(self.number, command)
            case FailAttempt():
                self._fail(command.key, command)


def _piece(block_id: int, generation: int) -> Piece:
    return Piece(block_id, generation, ())


def _drawn(plan: StepPlan) -> StepResult:
    return StepResult(
        {
            piece.sequence_id: (SampledToken(drawn_token(piece.samples[0].params)),)
            for piece in plan.slices
            if piece.samples
        }
    )
