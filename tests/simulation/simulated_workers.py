"""Workers of a cluster in virtual time: the production decisions and streams around a fake engine.

What `worker.service` and the services of both roles do with threads, gRPC and transports is done
here with the loop's timers; everything that decides is theirs.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from fake_engine import FakeEngine
from handoff_memory import copy_piece, described
from simulated_network import Network, Pipe

from core.block_pool import BlockPool
from core.handoff import FailureCause, LeaseTimes, Reserve
from core.in_flight import InFlight
from core.lease_events import (
    Aborted,
    Copied,
    CopyPieces,
    FailAttempt,
    FromPrefill,
    Opened,
    PeerLost,
    SendToPrefill,
)
from core.lease_events import Tick as LeaseTick
from core.outputs import TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey, Role
from crossdock.v1 import worker_pb2 as pb
from decode_worker.decoder import Decoder, PrefillHere
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    AttemptEnded,
    DecodeLost,
    FromDecode,
    SendToDecode,
    Submit,
)
from prefill_worker.messages import Tick as PrefillTick
from prefill_worker.prefiller import Prefiller
from router.placement import WorkerId
from text.tokenizer import Tokenizer
from wire.attempts import (
    key_from_wire,
    key_to_wire,
    load_to_wire,
    sampling_from_wire,
    tokens_from_wire,
)
from worker.answers import Answers
from worker.cache_publisher import CachePublisher
from worker.router_streams import RouterStreams

BLOCK_SIZE = 4
NUM_BLOCKS = 64
MAX_NUM_SEQS = 6
_TICK_S = 0.25
_STEP_S = 0.01


class _Words(dict[int, bytes]):
    """Each token is a word, its number."""

    def __missing__(self, token: int) -> bytes:
        return b"%d " % token


_TOKENIZER = cast(
    Tokenizer, SimpleNamespace(joins_bytes=True, token_bytes=SimpleNamespace(shown=_Words()))
)


class AttachStream:
    """One `Worker.Attach` call. ``receive``, ``lost``: of the router's end."""

    def __init__(
        self,
        network: Network,
        worker: SimWorker,
        router: Any,
        receive: Callable[[pb.WorkerMessage], None],
        lost: Callable[[AttachStream], None],
    ) -> None:
        self._network = network
        self._lost = lost
        self._requests: asyncio.Queue[pb.RouterMessage | None] = asyncio.Queue()
        self.worker = worker
        self.to_worker: Pipe[pb.RouterMessage] = Pipe(network, worker, self._requests.put_nowait)
        self.to_router: Pipe[pb.WorkerMessage] = Pipe(network, router, receive)
        self._task = asyncio.create_task(self._serve())
        worker.attached.append(self)

    async def _serve(self) -> None:
        async with aclosing(self.worker.streams.attach(self._incoming())) as answers:
            async for message in answers:
                self._send(message)

    def _send(self, message: pb.WorkerMessage) -> None:
        """A stream loses nothing, but routers must bear it: cache events go astray, also those that
        come with a step."""
        if message.step.HasField("cache"):
            self.to_router.send_astray(pb.WorkerMessage(cache=message.step.cache))
            message.step.ClearField("cache")
        astray = message.WhichOneof("message") == "cache"
        (self.to_router.send_astray if astray else self.to_router.send)(message)

    async def _incoming(self) -> Any:
        while (message := await self._requests.get()) is not None:
            yield message

    def cut(self) -> None:
        if not self.to_worker.is_broken:
            self.to_worker.is_broken = self.to_router.is_broken = True
            self.worker.attached.remove(self)
            self._network.after(self._network.delay(), self._requests.put_nowait, None)
            self._network.after(self._network.delay(), self._lost, self)


class HandoffStream:
    """One `Handoff.Session` call of a prefill worker."""

    def __init__(
        self, network: Network, prefill: SimPrefill, decode: SimDecode, number: int
    ) -> None:
        self._network = network
        self.prefill, self.decode = prefill, decode
        self.peer = f"{prefill.life}/{number}"
        self.to_decode: Pipe[Any] = Pipe(network, decode, self._at_decode)
        self.to_prefill: Pipe[Any] = Pipe(network, prefill, self._at_prefill)
        decode.peers[self.peer] = self

    def _at_decode(self, message: Any) -> None:
        if isinstance(message, AnnouncePieces):
            message = described(self.prefill.engine, message)
        for _ in range(self._network.times()):
            self.decode.submit(FromPrefill(self.peer, message))

    def _at_prefill(self, message: Any) -> None:
        for _ in range(self._network.times()):
            self.prefill.submit(FromDecode(message))

    def cut(self) -> None:
        if not self.to_decode.is_broken:
            self.to_decode.is_broken = self.to_prefill.is_broken = True
            self._network.after(self._network.delay(), self._decode_hears)
            self._network.after(self._network.delay(), self.prefill.lost_decode, self)

    def _decode_hears(self) -> None:
        self.decode.peers.pop(self.peer, None)
        self.decode.submit(PeerLost(self.peer))


class SimWorker(abc.ABC):
    """One life of one worker."""

    role: Role

    def __init__(self, network: Network, name: str, epoch: int) -> None:
        self.network = network
        self.id = WorkerId(name, epoch)
        self.life = f"{name}@{epoch:x}"
        self.is_alive, self.is_draining, self.stalled_until = True, False, 0.0
        self.engine = FakeEngine(NUM_BLOCKS, BLOCK_SIZE)
        self.generations = np.zeros(NUM_BLOCKS, dtype=np.uint64)
        self.brain = self.new_brain(BlockPool(NUM_BLOCKS, BLOCK_SIZE, self.generations))
        self.cache = CachePublisher(self.brain.pool, epoch)
        self.streams = RouterStreams(self)
        self.attached: list[AttachStream] = []
        self._answers = Answers(_TOKENIZER)
        self._timers: dict[AttemptKey, asyncio.TimerHandle] = {}
        self._tick()

    # What a role adds

    @abc.abstractmethod
    def new_brain(self, pool: BlockPool) -> Any: ...

    @property
    @abc.abstractmethod
    def in_flight(self) -> InFlight: ...

    @abc.abstractmethod
    def tick_event(self) -> Any: ...

    @abc.abstractmethod
    def abort_event(self, key: AttemptKey) -> Any: ...

    @abc.abstractmethod
    def on_assignment(self, message: pb.RouterMessage) -> None: ...

    @abc.abstractmethod
    def carry_out(self, command: Any) -> None: ...

    @abc.abstractmethod
    def handoffs(self) -> Iterator[HandoffStream]: ...

    # Life

    def die(self) -> None:
        """kill −9: others see broken connections."""
        self.is_alive = False
        for stream in [*self.attached, *self.handoffs()]:
            stream.cut()

    @property
    def is_at_rest(self) -> bool:
        return bool(self.brain.idle) and self.engine.is_idle and not self.streams.attempts

    def _tick(self) -> None:
        if self.is_alive:
            if self.stalled_until <= self.network.now:
                self.submit(self.tick_event())
            self.network.after(_TICK_S, self._tick)

    # Decisions

    def submit(self, event: Any) -> None:
        if self.is_alive:
            self._carry_out(self.brain.handle(event, self.network.now))
            self._plan()

    def _plan(self) -> None:
        if not self.engine.has_room:
            return
        plan = self.brain.plan_step(self.network.now)
        if plan is not None:
            in_flight = self.in_flight
            ids = [piece.sequence_id for piece in plan.slices]
            self.engine.submit(plan, {i: in_flight[i].tokens for i in ids})
            self.network.after(_STEP_S * (1 + self.network.random.random()), self._step_ends)

    def _step_ends(self) -> None:
        stalled = self.stalled_until - self.network.now
        if stalled > 0:
            self.network.after(stalled, self._step_ends)
        elif self.is_alive:
            self.engine.advance(self.engine.under_way[0])
            finished = self.engine.take_finished()
            self._carry_out(self.brain.complete_step(*finished, self.network.now))
            self._plan()

    def _carry_out(self, commands: list[Any]) -> None:
        outputs = [command for command in commands if isinstance(command, TokenOutput)]
        told = [self._answers.tell(output, self.streams) for output in outputs]
        self._tell_state()
        for end in told:
            if end is not None and end.last:
                self.finish(end.key)
        for command in commands:
            if not isinstance(command, TokenOutput):
                self.carry_out(command)

    def _tell_state(self) -> None:
        changed = self.cache.drain()
        self.streams.send_step(load_to_wire(self.brain.load), self.cache.sequence, changed)

    def tell_again(self) -> None:
        """What the next step would tell."""
        for stream in self.attached:
            stream.to_router.send(pb.WorkerMessage(step=self._step()))

    def _step(self) -> pb.Step:
        return pb.Step(load=load_to_wire(self.brain.load), cache_sequence=self.cache.sequence)

    def fail(self, key: AttemptKey, cause: FailureCause, detail: str) -> None:
        self.network.note(f"{self.life} fails {key}: {cause.name} {detail}")
        failure = pb.AttemptFailed(key=key_to_wire(key), cause=cause.name, detail=detail)
        self.streams.send_failure(key, failure)
        self.finish(key)

    def finish(self, key: AttemptKey) -> None:
        self._answers.forget(key)
        self.streams.forget(key)
        if key in self._timers:
            self._timers.pop(key).cancel()

    # What routers say

    def on_router_message(self, message: pb.RouterMessage) -> None:
        kind = message.WhichOneof("message")
        key = key_from_wire(getattr(message, kind).key)
        if kind == "abort":
            self._abort(key)
        elif self.is_draining:
            self.fail(key, FailureCause.DRAINING, "it leaves")
            self.submit(self.abort_event(key))
        else:
            assignment = getattr(message, kind)
            self._answers.begin(key, sampling_from_wire(assignment.sampling))
            if assignment.deadline_s > 0:
                loop = asyncio.get_running_loop()
                self._timers[key] = loop.call_later(assignment.deadline_s, self._expire, key)
            self.on_assignment(message)

    def _expire(self, key: AttemptKey) -> None:
        self.fail(key, FailureCause.DEADLINE, "the deadline passed")
        self.submit(self.abort_event(key))

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None:
        for key in attempts:
            self._abort(key)

    def _abort(self, key: AttemptKey) -> None:
        self.finish(key)
        self.submit(self.abort_event(key))

    def greet(self, attach: pb.Attach) -> list[pb.WorkerMessage]:
        self._tell_state()
        _, missing = self.cache.catch_up(attach.cache_epoch, attach.cache_sequence)
        welcome = pb.Welcome(
            worker=self.id.name,
            epoch=self.id.epoch,
            role=self.role.value,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_NUM_SEQS,
            cache_events=True,
        )
        return [
            pb.WorkerMessage(welcome=welcome),
            *(pb.WorkerMessage(cache=events) for events in missing),
            pb.WorkerMessage(step=self._step()),
        ]

    def missed_changes(self, after: int) -> list[pb.CacheEvents]:
        self._tell_state()
        return self.cache.catch_up(self.id.epoch, after)[1]


class SimDecode(SimWorker):
    """Takes handoffs, computes LOCAL prompts by itself."""

    role = Role.DECODE

    def __init__(self, network: Network, name: str, epoch: int) -> None:
        self.peers: dict[str, HandoffStream] = {}
        super().__init__(network, name, epoch)

    @property
    def in_flight(self) -> InFlight:
        return self.brain.sequences.in_flight  # type: ignore[no-any-return]

    def new_brain(self, pool: BlockPool) -> Decoder:
        return Decoder(
            pool,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=24,
            eos=frozenset(),
            times=LeaseTimes(),
            new_lease_id=lambda: self.network.random.getrandbits(62) + 1,
        )

    def tick_event(self) -> Any:
        return LeaseTick()

    def abort_event(self, key: AttemptKey) -> Any:
        return Aborted(key)

    def handoffs(self) -> Iterator[HandoffStream]:
        return iter(list(self.peers.values()))

    def on_assignment(self, message: pb.RouterMessage) -> None:
        opened = message.open
        key = key_from_wire(opened.key)
        if opened.mode == pb.Open.HANDOFF:
            self.submit(Opened(key))
        else:
            params = sampling_from_wire(opened.sampling)
            tokens = tokens_from_wire(opened.token_ids)
            self.submit(PrefillHere(key, tokens, params, opened.salt))

    def carry_out(self, command: Any) -> None:
        match command:
            case FailAttempt(key, cause, detail):
                self.fail(key, cause, detail)
            case SendToPrefill(peer, message):
                if peer in self.peers:
                    self.peers[peer].to_prefill.send(message)
            case CopyPieces():
                self.network.after(self.network.delay(), self._land, command)
            case _:
                raise AssertionError(command)

    def _land(self, command: CopyPieces) -> None:
        """The bytes move now: P may long have given the blocks to somebody else."""
        stream = self.peers.get(command.peer)
        good, bad = [], []
        for item in command.copies:
            landed = stream is not None and stream.prefill.is_alive
            (good if landed and self._copy(stream, item) else bad).append(item.index)
        self.submit(Copied(command.lease_id, tuple(good), tuple(bad)))

    def _copy(self, stream: Any, item: Any) -> bool:
        source, network = stream.prefill, self.network
        damage = network.faults.damage
        return copy_piece(
            source.engine, source.generations, self.engine, item, network.random, damage
        )


class SimMixed(SimDecode):
    """Takes LOCAL prompts only."""

    role = Role.MIXED


class SimPrefill(SimWorker):
    """Computes prompts for others. ``decodes``: finds the life of a decode worker."""

    role = Role.PREFILL

    def __init__(
        self,
        network: Network,
        name: str,
        epoch: int,
        decodes: Callable[[WorkerId], SimDecode | None],
    ) -> None:
        self._decodes = decodes
        self._places: dict[str, WorkerId] = {}
        self._sessions: dict[str, HandoffStream] = {}
        self._num_streams = 0
        super().__init__(network, name, epoch)

    @property
    def in_flight(self) -> InFlight:
        return self.brain.scheduler._in_flight  # type: ignore[no-any-return]

    def new_brain(self, pool: BlockPool) -> Prefiller:
        return Prefiller(
            pool,
            max_num_seqs=8,
            max_num_batched_tokens=12,
            eos=frozenset(),
            times=LeaseTimes(),
            ends_by_text=lambda params, token: False,
        )

    def tick_event(self) -> Any:
        return PrefillTick()

    def abort_event(self, key: AttemptKey) -> Any:
        return Abort(key)

    def handoffs(self) -> Iterator[HandoffStream]:
        return iter(list(self._sessions.values()))

    def on_assignment(self, message: pb.RouterMessage) -> None:
        prefill = message.prefill
        decode = WorkerId(prefill.decode_worker, prefill.decode_epoch)
        life = f"{decode.name}@{decode.epoch:x}"
        self._places[life] = decode
        key, params = key_from_wire(prefill.key), sampling_from_wire(prefill.sampling)
        tokens = tokens_from_wire(prefill.token_ids)
        self.submit(Submit(key, tokens, params, prefill.salt, life))

    def carry_out(self, command: Any) -> None:
        match command:
            case SendToDecode(life, message):
                self._send(life, message)
            case AnnouncePieces(decode_worker=life):
                self._send(life, command)
            case ReportFailure(key, cause, detail):
                self.fail(key, cause, detail)
            case AttemptEnded(key):
                self.finish(key)
            case _:
                raise AssertionError(command)

    def _send(self, life: str, message: Any) -> None:
        if life not in self._sessions:
            if not isinstance(message, Reserve):
                return
            decode = self._decodes(self._places[life])
            if decode is None:
                refused = DecodeLost(life, FailureCause.DECODE_LOST, "nobody answers")
                self.network.after(self.network.delay(), self.submit, refused)
                return
            self._num_streams += 1
            self._sessions[life] = HandoffStream(self.network, self, decode, self._num_streams)
        self._sessions[life].to_decode.send(message)

    def lost_decode(self, stream: HandoffStream) -> None:
        life = stream.decode.life
        if self._sessions.get(life) is stream:
            del self._sessions[life]
        self.submit(DecodeLost(life, FailureCause.DECODE_LOST, "the stream broke"))
