"""The shell of a worker: what routers say becomes events, what is decided becomes messages.

Covers: the gRPC `Worker` service, attempts from assignment to end, answers as text, cache events,
deadlines, the clock tick, draining, statistics. Prefill and decode workers add what is theirs.
Does not cover: decisions (`prefill_worker.prefiller`, `decode_worker.decoder`), their lock and
order (`worker.decisions`).
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Generic, TypeVar

import grpc

from core.errors import CrossdockError, InvalidField
from core.handoff import FailureCause
from core.outputs import TokenOutput
from core.request import AttemptKey, SamplingParams
from core.tls_files import server_files
from core.worker_settings import WorkerSettings
from crossdock.v1 import metrics_pb2, worker_pb2_grpc
from crossdock.v1 import worker_pb2 as pb
from engine.runner import LoadedModel
from text.tokenizer import Tokenizer
from wire.attempts import (
    key_from_wire,
    key_to_wire,
    load_to_wire,
    sampling_from_wire,
)
from wire.metrics_door import MetricsDoor
from worker.answers import AnswerEnd, Answers
from worker.brain import Brain
from worker.cache_publisher import CachePublisher
from worker.decisions import Decisions
from worker.metrics import WorkerMetrics
from worker.ranks.replica import Replica
from worker.router_streams import RouterStreams
from worker.stats import make_stats

_TICK_S = 0.25

Event = TypeVar("Event")
Command = TypeVar("Command")


class WorkerService(worker_pb2_grpc.WorkerServicer, abc.ABC, Generic[Event, Command]):
    """Base of both roles. Everything but the engine's steps runs on one event loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        epoch: int,
        model: LoadedModel,
        tokenizer: Tokenizer,
        brain: Brain[Event, Command],
        replica: Replica,
        metrics: WorkerMetrics,
    ) -> None:
        self.settings = settings
        self.epoch = epoch
        self.model = model
        self.tokenizer = tokenizer
        self.brain = brain
        self._replica = replica
        self._metrics = metrics
        self.metrics_door = MetricsDoor(self.render_metrics)
        self.streams = RouterStreams(self)
        self._cache = CachePublisher(brain.pool, epoch, settings.cache_events)
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.decisions = Decisions(
            settings.worker,
            brain,
            replica,
            metrics.meter,
            self.closed,
            carry_out=self._carry_out,
            after_step=self.after_step,
        )
        self._answers = Answers(tokenizer)
        self._timers: dict[AttemptKey, asyncio.TimerHandle] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._draining = False

    # Life

    @property
    def token_stream_address(self) -> str:
        """Where clients read tokens from this worker, host:port; "": nowhere."""
        return ""

    async def open_doors(self) -> None:
        """Those beside `Worker`. Raises ``Unavailable`` if a port is taken."""
        settings = self.settings
        files = server_files(settings.tls)
        await self.metrics_door.start(settings.host, settings.metrics_port, files)

    async def close_doors(self) -> None:
        await self.metrics_door.stop()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds what this worker serves to a gRPC server."""
        worker_pb2_grpc.add_WorkerServicer_to_server(self, server)

    def start(self) -> None:
        self.decisions.start()
        self._ticker = asyncio.create_task(self._tick_for_ever())

    async def stop(self) -> None:
        """Ends the engine's thread and the ticker. The gRPC server is stopped before.

        `closed` gets an exception if the engine hangs or its replica is lost meanwhile.
        """
        if self._ticker is not None:
            self._ticker.cancel()
        await self.decisions.stop()
        for timer in self._timers.values():
            timer.cancel()

    def refuse_new(self) -> None:
        """From now on new attempts are sent back to the router, which takes them elsewhere."""
        self._draining = True

    def cut(self, reason: str) -> None:
        """Ends every attempt that is left. The router retries those that have no token yet."""
        for key in self.attempts:
            self._refuse(key, reason)

    @property
    def attempts(self) -> Iterable[AttemptKey]:
        """All that somebody still waits for. A role may add to them."""
        return self.streams.attempts

    def _refuse(self, key: AttemptKey, reason: str) -> None:
        self.fail(key, FailureCause.DRAINING, reason)
        # What a prefill worker has sent for it, or will send, must find its end.
        self.decisions.submit(self.abort_event(key))

    async def wait_idle(self, limit_s: float) -> bool:
        """Waits until no attempt is left, at most ``limit_s``. Tells whether it came to that."""
        self._note_idleness()
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    def _note_idleness(self) -> None:
        is_idle = self.decisions.idle and self.all_told
        (self._idle.set if is_idle else self._idle.clear)()

    @property
    def all_told(self) -> bool:
        """Nobody waits for what was computed. A role may have more to tell."""
        return True

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.decisions.submit(self.tick_event())
            self.after_tick()

    def after_tick(self) -> None:
        """Time has passed. A role may add to it."""

    def after_step(self) -> None:
        """A step's tokens have left, with the next step under way if there is one. A role may add
        to it."""

    # What a role adds

    @abc.abstractmethod
    def tick_event(self) -> Event:
        """The event that tells the brain that time passed."""

    @abc.abstractmethod
    def abort_event(self, key: AttemptKey) -> Event:
        """The event for an attempt that nobody wants any more."""

    @abc.abstractmethod
    def stop_text_event(self, key: AttemptKey, index: int) -> Event | None:
        """The event for an answer that reached a stop string; None if it ended already."""

    @abc.abstractmethod
    def carry_out(self, command: Command) -> None:
        """Carries out a command that is not a token."""

    @abc.abstractmethod
    def on_assignment(self, message: pb.RouterMessage) -> None:
        """The router assigned an attempt (Prefill or Open)."""

    @abc.abstractmethod
    def edge_stats(self) -> list[pb.EdgeStats]:
        """KV edges into this worker."""

    # Commands

    def _carry_out(self, commands: list[Command]) -> None:
        told = [
            self._answers.tell(command, self)
            for command in commands
            if isinstance(command, TokenOutput)
        ]
        # Tokens leave first: another command may end the attempt they belong to.
        self.tell_state()
        for end in told:
            if end is not None:
                self._end_answer(end)
        for command in commands:
            if not isinstance(command, TokenOutput):
                self.carry_out(command)
        self._note_idleness()

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        """A place for an output, for whoever gets it: a role may have others than routers."""
        return self.streams.new_output(key)

    def go_on(self, key: AttemptKey, index: int, token: int, text: str) -> bool:
        """One more token of an answer, in the same way. False: it has to be an output."""
        return self.streams.go_on(key, index, token, text)

    def _end_answer(self, end: AnswerEnd) -> None:
        if end.stopped:
            self._stop_computing(end.key, end.index)
        if end.last:
            self.complete(end.key)

    def complete(self, key: AttemptKey) -> None:
        """All answers of an attempt have ended."""
        self.finish(key)

    def tell_state(self) -> None:
        """Tells routers what changed in the prefix cache, and with the outputs the load of that
        moment."""
        with self.decisions.lock:
            changed, last = self._cache.drain(), self._cache.sequence
            load = self.brain.load
        self._send_state(changed, load_to_wire(load), last)

    def _send_state(self, changed: pb.CacheEvents | None, load: pb.Load, last: int) -> None:
        self.streams.send_step(load, last, changed)

    def _catch_up(self, epoch: int, sequence: int) -> tuple[pb.Load, list[pb.CacheEvents]]:
        """The load, and the changes that a router lacks. Routers that are attached already get what
        is pending, so that what this one gets and the events that follow fit together."""
        with self.decisions.lock:
            changed, missing = self._cache.catch_up(epoch, sequence)
            load, last = load_to_wire(self.brain.load), self._cache.sequence
        self._send_state(changed, load, last)
        return load, missing

    def _stop_computing(self, key: AttemptKey, index: int) -> None:
        event = self.stop_text_event(key, index)
        if event is not None:
            self._loop.call_soon(self.decisions.submit, event)

    def fail(self, key: AttemptKey, cause: FailureCause, detail: str) -> None:
        """Tells the router that the attempt ended without an answer."""
        failure = pb.AttemptFailed(
            key=key_to_wire(key),
            cause=cause.name,
            detail=detail,
        )
        self.streams.send_failure(key, failure)
        self.finish(key)

    def finish(self, key: AttemptKey) -> None:
        """Forgets an attempt that ended."""
        self.streams.forget(key)
        self.end_computing(key)

    def end_computing(self, key: AttemptKey) -> None:
        """There will be no more tokens of this attempt, nor a reason to expire it."""
        self._answers.forget(key)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    # Routers

    def begin(self, key: AttemptKey, params: SamplingParams, deadline_s: float) -> None:
        """Prepares for the tokens of an attempt."""
        self._answers.begin(key, params)
        if deadline_s > 0:
            self._timers[key] = self._loop.call_later(deadline_s, self._expire, key)

    def _expire(self, key: AttemptKey) -> None:
        with self.decisions.lock:
            self.brain.events.add(time.monotonic(), "deadline passed", key)
        self.fail(key, FailureCause.DEADLINE, "the deadline of the request passed")
        self.decisions.submit(self.abort_event(key))

    def on_router_message(self, message: pb.RouterMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "abort":
            self.abort(key_from_wire(message.abort.key))
            return
        assignment = message.prefill if kind == "prefill" else message.open
        if self._draining:
            self._refuse(key_from_wire(assignment.key), f"{self.settings.worker} is being drained")
            return
        try:
            params = sampling_from_wire(assignment.sampling)
        except InvalidField as error:
            self.fail(key_from_wire(assignment.key), FailureCause.REJECTED, error.message)
            return
        self.begin(key_from_wire(assignment.key), params, assignment.deadline_s)
        self.on_assignment(message)

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None:
        for key in attempts:
            self.abort(key)

    def abort(self, key: AttemptKey) -> None:
        """Nobody wants the attempt any more."""
        self.finish(key)
        self.decisions.submit(self.abort_event(key))

    def greet(self, attach: pb.Attach) -> list[pb.WorkerMessage]:
        welcome = pb.Welcome(
            worker=self.settings.worker,
            epoch=self.epoch,
            role=self.settings.role.value,
            num_blocks=self.settings.num_blocks,
            block_size=self.settings.block_size,
            max_num_seqs=self.settings.max_num_seqs,
            metrics_address=self.metrics_door.address,
            cache_events=self._cache.enabled,
            token_stream_address=self.token_stream_address,
        )
        load, missing = self._catch_up(attach.cache_epoch, attach.cache_sequence)
        return [
            pb.WorkerMessage(welcome=welcome),
            *(pb.WorkerMessage(cache=events) for events in missing),
            pb.WorkerMessage(step=pb.Step(load=load, cache_sequence=self._cache.sequence)),
        ]

    def missed_changes(self, after: int) -> list[pb.CacheEvents]:
        return self._catch_up(self.epoch, after)[1]

    # gRPC

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.RouterMessage],
        context: grpc.aio.ServicerContext[pb.RouterMessage, pb.WorkerMessage],
    ) -> AsyncIterator[pb.WorkerMessage]:
        del context
        async for message in self.streams.attach(request_iterator):
            yield message

    async def GetStats(
        self,
        request: pb.GetStatsRequest,
        context: grpc.aio.ServicerContext[pb.GetStatsRequest, pb.WorkerStats],
    ) -> pb.WorkerStats:
        ranks = await self._replica.stats()
        try:
            with self.decisions.lock:
                if request.validate:
                    self.validate()
                edges, routers = self.edge_stats(), self.streams.num_routers
                stats = make_stats(self.settings, self.epoch, self.brain, edges, ranks, routers)
        except CrossdockError as error:
            await context.abort(grpc.StatusCode.INTERNAL, error.message)
        stats.busy_s = self._metrics.meter.busy_s
        stats.metrics_address = self.metrics_door.address
        stats.cache_sequence = self._cache.sequence
        stats.routers_without_events = self.streams.num_lacking_events
        return stats

    async def GetMetrics(
        self,
        request: metrics_pb2.GetMetricsRequest,
        context: grpc.aio.ServicerContext[metrics_pb2.GetMetricsRequest, metrics_pb2.MetricsText],
    ) -> metrics_pb2.MetricsText:
        del request, context
        return metrics_pb2.MetricsText(text=await self.render_metrics())

    def validate(self) -> None:
        """Raises ``InternalError`` if an invariant is broken. A role may have more of them."""
        self.brain.validate()

    async def render_metrics(self) -> bytes:
        """What `/metrics` of this worker shows."""
        ranks = await self._replica.stats()
        with self.decisions.lock:
            edges, routers = self.edge_stats(), self.streams.num_routers
            state = self._metrics.state(self.brain, edges, ranks, routers)
        return self._metrics.render(state)
