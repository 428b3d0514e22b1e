"""A client that reads by ticket, its router and its decode workers, with whatever may break.

The production objects of all three (``TicketAnswer``, ``Flow``, ``ReadableAnswers``) with a virtual
clock; hypothesis chooses what happens next. Whatever it is: what the client is given is the answer,
each token once and in its order, or the beginning of it and then an error; and nobody waits for
ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.errors import CrossdockError, RequestAborted
from core.handoff import FailureCause
from core.request import AttemptKey, FinishReason, RequestKey
from crossdock.client.errors import ServerError
from crossdock.client.errors import Unavailable as ClientUnavailable
from crossdock.client.ticket_answer import (
    Action,
    End,
    Give,
    Read,
    Relay,
    StopReading,
    TicketAnswer,
)
from crossdock.client.ticket_answer import Fail as ClientFail
from crossdock.v1 import inference_pb2
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.token_stream_pb2 import ReadResponse
from decode_worker.read_responses import read_response
from decode_worker.readable_answers import (
    PATIENCE_S,
    ReadableAnswers,
    Reader,
    ReaderLost,
    RelayUnread,
    Report,
)
from router.flow.flow import Flow
from router.flow.messages import (
    AttemptFailed,
    ClientGone,
    Command,
    Emit,
    Fail,
    Finish,
    GiveTicket,
    RelayAsked,
    ReportDefect,
    Route,
    Routed,
    RouteDue,
    SendAbort,
    SendOpen,
    SendRelay,
    WorkerLost,
)
from router.placement import Placement, WorkerId
from router.workers.worker_answers import output_from_wire
from wire.attempts import key_to_wire

REQUEST = RequestKey("default", "r")
VALID_S = 10.0
OPEN_S = 5.0


def token_of(index: int, position: int) -> int:
    return 1_000 * index + position


def text_of(index: int, first: int, last: int) -> str:
    return "".join(f"<{token_of(index, i)}>" for i in range(first, last))


@dataclass
class Call:
    """A Read call. ``inbox``: on its way to the client."""

    attempt: int
    position: int
    began: float
    reader: Reader | None = None
    inbox: deque[Any] = field(default_factory=deque)
    broken: bool = False


class Worker:
    """As ``DecodeService`` carries out what ``ReadableAnswers`` says."""

    def __init__(self, world: World, name: str) -> None:
        self.id = WorkerId(name, 1)
        self.world = world
        self.alive = True
        self.router_lost = False
        self.readable = ReadableAnswers()
        self.running: dict[AttemptKey, list[int]] = {}
        self.calls: list[Call] = []
        self.from_router: deque[Command] = deque()
        self.to_router: deque[Callable[[], None]] = deque()

    def hear_router(self) -> None:
        command = self.from_router.popleft()
        key = AttemptKey(REQUEST, command.attempt)  # type: ignore[union-attr]
        match command:
            case SendOpen():
                self.running[key] = [0] * self.world.n
                if command.by_ticket:
                    self.readable.open(key, 7, b"key", VALID_S, self.world.now)
            case SendAbort():
                self.end(key, RequestAborted("ended", reason="ENDED"))
            case SendRelay():
                self.relay(key, command.position)

    def compute(self) -> None:
        """One more token of each sequence that goes on."""
        for key, done in list(self.running.items()):
            for index, length in enumerate(self.world.lengths):
                if done[index] < length:
                    self.produce(key, index, done[index])
                    done[index] += 1
            if done == self.world.lengths:
                del self.running[key]
                if key in self.readable:
                    self.readable.completed(key, self.world.now)

    def produce(self, key: AttemptKey, index: int, position: int) -> None:
        output = self.readable.new_output(key)
        read = output is not None
        output = output if output is not None else pb.SequenceOutput()
        ends = position + 1 == self.world.lengths[index]
        output.key.CopyFrom(key_to_wire(key))
        output.index, output.text = index, text_of(index, position, position + 1)
        output.token_ids.append(token_of(index, position))
        output.finish_reason = FinishReason.LENGTH.value if ends else ""
        if not read:
            self.tell_output(output)

    def tell_output(self, output: pb.SequenceOutput) -> None:
        event = output_from_wire(self.id, output)
        self.to_router.append(lambda: self.world.router_hears(event))

    def tell(self, report: Report | None) -> None:
        for output in report.outputs if report is not None else ():
            self.tell_output(output)

    def relay(self, key: AttemptKey, position: int) -> None:
        self.tell(self.readable.report_all(key, self.world.now))
        relayed = self.readable.relay(key, position)
        for output in relayed.outputs if relayed is not None else ():
            self.tell_output(output)

    def end(self, key: AttemptKey, why: CrossdockError) -> None:
        self.readable.drop(key, why)
        self.running.pop(key, None)

    def fail(self, key: AttemptKey, cause: FailureCause) -> None:
        self.tell(self.readable.report_all(key, self.world.now))
        self.end(key, RequestAborted(cause.name, reason=cause.name))
        failed = AttemptFailed(self.id, key.attempt, cause)
        self.to_router.append(lambda: self.world.router_hears(failed))

    def serve_readers(self) -> None:
        for call in self.calls:
            if not call.broken:
                self.serve(call)
        self.calls = [call for call in self.calls if not call.broken]

    def serve(self, call: Call) -> None:
        key = AttemptKey(REQUEST, call.attempt)
        try:
            if call.reader is None:
                if key not in self.readable and self.world.now - call.began < OPEN_S:
                    return
                call.reader = self.readable.claim(key, call.position, self.world.now)
                call.inbox.append(ReadResponse(position=call.position))
            start, answer = call.reader.position, self.readable.take(call.reader)
            if call.reader.position > start:
                self.tell(self.readable.report(key, self.world.now))
                call.inbox.append(read_response(answer.outputs, start, 7, self.id.name))
            if self.readable.has_all(call.reader):
                self.hang_up(call, None)
        except CrossdockError as error:
            self.hang_up(call, told(error))

    def hang_up(self, call: Call, error: ServerError | None) -> None:
        call.broken = True
        if call.reader is not None:
            self.readable.left(call.reader, self.world.now)
        call.inbox.append(error)

    def tick(self) -> None:
        for key in self.readable:
            self.tell(self.readable.report(key, self.world.now))
        for command in self.readable.tick(self.world.now):
            match command:
                case RelayUnread(key):
                    self.relay(key, 0)
                case ReaderLost(key):
                    self.fail(key, FailureCause.READER_LOST)

    def die(self) -> None:
        self.alive = False
        for call in self.calls:
            call.broken = True
            call.inbox.append(lost("the worker died"))
        self.calls, self.running = [], {}
        self.from_router.clear()
        # What it said before it died may get lost.
        self.to_router.clear()
        self.to_router.append(lambda: self.world.router_hears(WorkerLost(self.id)))


def lost(why: str) -> ServerError:
    return ClientUnavailable(grpc.StatusCode.UNAVAILABLE, why)


def told(error: CrossdockError) -> ServerError:
    code = next(c for c in grpc.StatusCode if c.value[0] == error.status.grpc_number)
    return ServerError(code, error.message, reason=error.reason)


def as_response(command: GiveTicket | Emit | Finish) -> inference_pb2.GenerateResponse:
    match command:
        case GiveTicket():
            endpoint = command.worker.name if command.worker else ""
            ticket = inference_pb2.ReadTicket(attempt=command.attempt, endpoint=endpoint)
            return inference_pb2.GenerateResponse(ticket=ticket)
        case Emit():
            chunk = inference_pb2.Chunk(token_ids=command.token_ids, text=command.text)
            return inference_pb2.GenerateResponse(index=command.index, chunk=chunk)
        case Finish():
            complete = inference_pb2.Complete(completion_tokens=command.completion_tokens)
            return inference_pb2.GenerateResponse(index=command.index, complete=complete)


class World:
    def __init__(self, lengths: list[int]) -> None:
        self.n, self.lengths = len(lengths), lengths
        self.now = 0.0
        self.flow = Flow(REQUEST, 0.0, n=self.n, by_ticket=True)
        self.workers = [Worker(self, "d0"), Worker(self, "d1"), Worker(self, "d2")]
        self.router_alive = True
        # The client reaches no worker (any more).
        self.cut_off = False
        self.flow_failed = False
        self.timers: list[tuple[float, Any]] = []
        self.to_client: deque[Any] = deque()
        self.to_router: deque[Relay] = deque()
        self.client = TicketAnswer(self.n)
        self.call: Call | None = None
        self.given: list[list[int]] = [[] for _ in lengths]
        self.texts = ["" for _ in lengths]
        self.ends: list[Action] = []
        self.completes: dict[int, int] = {}
        self.router_does(self.flow.handle(RouteDue(), self.now))

    # The router

    def router_hears(self, event: Any) -> None:
        if self.router_alive:
            was_over = self.flow.ended
            self.router_does(self.flow.handle(event, self.now))
            if self.flow.ended and not was_over and not self.flow_failed:
                self.to_client.append(None)

    def router_does(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Route(avoid, delay):
                    self.route(avoid, delay)
                case SendOpen() | SendAbort() | SendRelay():
                    worker = self.worker(command.worker)
                    if worker.alive:
                        worker.from_router.append(command)
                case GiveTicket() | Emit() | Finish():
                    self.to_client.append(as_response(command))
                case Fail():
                    self.flow_failed = True
                    self.to_client.append(told(command.error))
                case ReportDefect():
                    raise AssertionError(command)

    def route(self, avoid: frozenset[WorkerId], delay: float) -> None:
        if delay > 0:
            self.timers.append((self.now + delay, RouteDue()))
            return
        living = [worker for worker in self.workers if worker.alive]
        chosen = next((worker for worker in living if worker.id not in avoid), living[-1])
        self.router_does(self.flow.handle(Routed(Placement(chosen.id), readable=True), self.now))

    def worker(self, worker_id: WorkerId) -> Worker:
        return next(w for w in self.workers if w.id == worker_id)

    def router_dies(self) -> None:
        """What it has sent arrives, and then its connections break."""
        if self.router_alive:
            self.router_alive = False
            self.to_client.append(lost("the router died"))
            for worker in self.workers:
                self.loses_router(worker)

    def loses_router(self, worker: Worker) -> None:
        worker.from_router.clear()
        for key in {*worker.running, *worker.readable}:
            if not worker.readable.lost_router(key, self.now):
                worker.end(key, RequestAborted("its router is gone", reason="ENDED"))

    # The client

    def hear_router(self) -> None:
        message = self.to_client.popleft()
        if isinstance(message, inference_pb2.GenerateResponse):
            self.client_does(self.client.from_router(message))
        else:
            self.client_does(self.client.router_ended(message))

    def hear_worker(self) -> None:
        call = self.call
        if call is None or not call.inbox:
            return
        message = call.inbox.popleft()
        if message is None or isinstance(message, ServerError):
            self.call = None
            self.client_does(self.client.worker_ended(call.attempt, message))
        else:
            self.client_does(self.client.from_worker(call.attempt, message))

    def client_does(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Give(response):
                    self.give(response)
                case Read(ticket, position):
                    self.read(ticket, position)
                case StopReading():
                    self.stop_reading()
                case Relay():
                    self.stop_reading()
                    if self.router_alive:
                        self.to_router.append(action)
                case End() | ClientFail():
                    self.ends.append(action)
                    self.leave()

    def give(self, response: inference_pb2.GenerateResponse) -> None:
        assert not self.ends
        assert response.index not in self.completes, "tokens after the end"
        if response.HasField("complete"):
            self.completes[response.index] = response.complete.completion_tokens
        else:
            self.given[response.index] += response.chunk.token_ids
            self.texts[response.index] += response.chunk.text

    def read(self, ticket: inference_pb2.ReadTicket, position: int) -> None:
        self.stop_reading()
        self.call = Call(ticket.attempt, position, self.now)
        worker = next(w for w in self.workers if w.id.name == ticket.endpoint)
        if worker.alive and not self.cut_off:
            worker.calls.append(self.call)
        else:
            self.call.inbox.append(lost("can't connect"))

    def stop_reading(self) -> None:
        if self.call is not None:
            self.break_call(self.call)
            self.call = None

    def break_call(self, call: Call) -> None:
        call.broken = True
        for worker in self.workers:
            if call in worker.calls and call.reader is not None:
                worker.readable.left(call.reader, self.now)

    def leave(self) -> None:
        self.stop_reading()
        if self.router_alive and not self.flow.ended:
            self.router_hears(ClientGone())

    # What may happen

    def breaks(self) -> None:
        """The client's connection to the worker; what was on its way is lost."""
        if self.call is not None and not self.call.broken:
            self.break_call(self.call)
            self.call.inbox.clear()
            self.call.inbox.append(lost("the connection broke"))

    def cuts_off(self) -> None:
        self.cut_off = True
        self.breaks()

    def deliver_all(self) -> bool:
        """Everything that is on its way, once; whether there was something."""
        busy = False
        for worker in self.workers:
            if worker.alive and worker.from_router:
                worker.hear_router()
                busy = True
            if worker.to_router:
                worker.to_router.popleft()()
                busy = True
            if worker.alive:
                worker.serve_readers()
        if self.to_router:
            self.hear_relay()
            busy = True
        if self.to_client and not self.ends:
            self.hear_router()
            busy = True
        if self.call is not None and self.call.inbox and not self.ends:
            self.hear_worker()
            busy = True
        return busy

    def hear_relay(self) -> None:
        asked = self.to_router.popleft()
        if not self.flow.ended:
            self.router_hears(RelayAsked(asked.attempt, asked.position))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        due = [event for at, event in self.timers if at <= self.now]
        self.timers = [(at, event) for at, event in self.timers if at > self.now]
        for event in due:
            self.router_hears(event)
        for worker in self.workers:
            if worker.alive:
                worker.tick()
            worker.readable.validate()

    def compute(self) -> None:
        for worker in self.workers:
            if worker.alive:
                worker.compute()

    def check(self) -> None:
        for index, (ids, text) in enumerate(zip(self.given, self.texts, strict=True)):
            assert ids == [token_of(index, i) for i in range(len(ids))]
            assert text == text_of(index, 0, len(ids))
            if index in self.completes:
                assert len(ids) == self.lengths[index] == self.completes[index]


STEPS = {
    "compute": World.compute,
    "deliver": World.deliver_all,
    "worker to client": World.hear_worker,
    "breaks": World.breaks,
    "cuts off": World.cuts_off,
    "a moment": lambda world: world.tick(0.1),
    "a while": lambda world: world.tick(PATIENCE_S / 2),
    "d0 dies": lambda world: world.workers[0].alive and world.workers[0].die(),
    "d1 dies": lambda world: world.workers[1].alive and world.workers[1].die(),
    "router dies": World.router_dies,
}
COMMON = ["compute", "deliver", "deliver", "worker to client", "a moment"]


def run_to_the_end(world: World) -> None:
    """Nothing breaks any more."""
    for _ in range(400):
        world.compute()
        while world.deliver_all():
            world.check()
        world.tick(0.5)
        if world.ends:
            break
    while world.deliver_all():
        pass


@settings(max_examples=examples(400))
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.sampled_from([*STEPS, *COMMON]), max_size=60),
)
def test_no_token_is_lost_or_doubled_whatever_breaks(lengths: list[int], steps: list[str]) -> None:
    world = World(lengths)
    for step in steps:
        STEPS[step](world)
        world.check()
    run_to_the_end(world)
    world.check()
    [end] = world.ends
    if isinstance(end, End):
        assert world.completes == dict(enumerate(lengths))
    # In the end nobody keeps anything of it.
    for _ in range(int(2 * (VALID_S + PATIENCE_S))):
        world.tick(1.0)
        while world.deliver_all():
            pass
    for worker in world.workers:
        assert not worker.alive or not list(worker.readable)
        assert not worker.alive or not worker.running


@settings(max_examples=examples(100))
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.sampled_from(["breaks", "cuts off", *COMMON]), max_size=60),
)
def test_broken_connections_to_the_worker_alone_cost_no_answer(
    lengths: list[int], steps: list[str]
) -> None:
    world = World(lengths)
    for step in steps:
        STEPS[step](world)
        world.check()
    run_to_the_end(world)
    world.check()
    assert [type(end) for end in world.ends] == [End], world.ends
    assert world.flow.lifecycle.attempt == 1
    assert world.flow.tokens_delivered == sum(lengths)


@settings(max_examples=examples(200))
@given(st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(0, 5))
def test_a_router_that_dies_under_a_reader_costs_no_answer(lengths: list[int], steps: int) -> None:
    world = World(lengths)
    world.compute()
    while world.deliver_all():
        pass
    for _ in range(steps):
        world.compute()
        world.deliver_all()
    world.router_dies()
    run_to_the_end(world)
    world.check()
    assert [type(end) for end in world.ends] == [End], world.ends
