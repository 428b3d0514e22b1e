"""The router in virtual time: the production flow of each request, placed by what workers told.

Covers: arrivals, the queue at the door, attempts, retries after a pause, what is known of the
workers at the moment of a decision. Does not cover: text, deadlines of clients
(``router.requests.dispatcher`` has them).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from core.block_hash import HashArray, TokenArray
from core.errors import CrossdockError, InvalidField
from core.latency_profile import FEMTOSECONDS, femtoseconds
from core.lease_events import FailAttempt, Opened
from core.outputs import Load, TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey, RequestKey, SamplingParams
from decode_worker.decoder import PrefillHere
from prefill_worker.messages import Submit
from router.admission.admission import Admission
from router.admission.door import Door
from router.admission.messages import Arrived, DoorEvent, Ended, RoomChanged, Started
from router.admission.worker_room import WorkerRoom
from router.flow.flow import Flow
from router.flow.messages import (
    AttemptFailed,
    Command,
    Emit,
    Fail,
    Finish,
    FlowEvent,
    Output,
    Route,
    Routed,
    RouteDue,
    SendAbort,
    SendOpen,
    SendPrefill,
    Unroutable,
)
from router.placement import WorkerId
from router.prefix_index.held_blocks import HeldBlocks
from router.routing.candidates import PromptShape
from router.routing.routing_state import RoutedPrompt, RoutingState
from router.routing.worker_load import SETTLE_S
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.decode_replica import DecodeReplica
from tuner.simulate.identity import index_of, request_index, request_key, sampling_of
from tuner.simulate.prefill_replica import PrefillReplica
from tuner.simulate.prompt_hashes import PromptHashes
from tuner.simulate.recorder import RequestRecorder
from tuner.simulate.requests import RequestTrace
from tuner.simulate.run_board import RunBoard

SALT = 0


@dataclass(slots=True, eq=False)
class _Running:
    index: int
    tokens: TokenArray
    params: SamplingParams
    routed: RoutedPrompt
    flow: Flow
    has_token: bool = False

    @property
    def attempt_key(self) -> AttemptKey:
        return AttemptKey(self.flow.key, self.flow.lifecycle.attempt)


class SimulatedRouter:
    """All requests of a trace. ``workers``: by their numbers."""

    def __init__(
        self,
        trace: RequestTrace,
        cluster: ClusterModel,
        workers: Sequence[PrefillReplica | DecodeReplica],
        board: RunBoard,
        agenda: Agenda,
        recorder: RequestRecorder,
        seed: int,
    ) -> None:
        self._trace = trace
        self._block_size = cluster.block_size
        self._hashes = PromptHashes(trace, cluster.block_size)
        self._limits = cluster.limits
        self._workers = workers
        self._board = board
        self._by_id = {replica.worker: replica for replica in workers}
        self._agenda = agenda
        self._recorder = recorder
        self._message = femtoseconds(cluster.message_s)
        self._request = femtoseconds(cluster.request_s)
        self._routing = RoutingState(cluster.rules, Random(seed))
        for replica in workers:
            num_blocks = replica.brain.pool.num_blocks
            self._routing.attached(replica.worker, replica.role, num_blocks, replica.max_num_seqs)
            # The first to be attached, in their order: both sides count them alike.
            assert self._routing.number(replica.worker) == replica.number
        self._routing.use(self._by_id)
        self._access = access = cluster.access
        self._room = WorkerRoom(self._routing, access.door, cluster.rules, cluster.block_size)
        self._door = Door(
            Admission(access.tenant, self._room, access.door.max_waiting, cluster.block_size),
            self._let_in,
            self._turn_away,
        )
        self._ttft_s = cluster.ttft_s
        blocks = max((w.brain.pool.num_blocks for w in workers if w.role.decodes), default=0)
        self._longest = min(blocks * cluster.block_size, cluster.max_model_len or sys.maxsize)
        self._running: dict[int, _Running] = {}
        # What workers said, by its arrival: (when, which, worker, …). A heap, as some of it is
        # found out late.
        self._inbox: list[tuple[int, int, WorkerId, Load | None, HashArray, HashArray]] = []
        self._num_states = 0
        self._expect_arrival(0)

    # Arrivals

    def _expect_arrival(self, index: int) -> None:
        if index < len(self._trace):
            arrived = femtoseconds(float(self._trace.arrivals_s[index]))
            self._agenda.at(arrived + self._request, self._on_arrival, index)

    def _on_arrival(self, index: int) -> None:
        self._expect_arrival(index + 1)
        prompt, output = (
            int(self._trace.prompt_tokens[index]),
            int(self._trace.output_tokens[index]),
        )
        if prompt + output > self._longest:
            why = f"PROMPT_TOO_LONG: {prompt} tokens in, {output} out, at most {self._longest}"
            self._recorder.failed(index, self._at_client_s, 0, why)
            return
        tokens = self._trace.prompt(index)
        shape = PromptShape(prompt, self._block_size)
        routed = RoutedPrompt(shape, self._hashes.of(index))
        arrived = float(self._trace.arrivals_s[index])
        key = request_key(index, self._trace.tenant(index))
        flow = Flow(key, arrived, limits=self._limits)
        params = sampling_of(index, output)
        running = _Running(index, tokens, params, routed, flow)
        self._running[index] = running
        priority = self._access.tenant(key.tenant).priority
        self._tell_door(Arrived(key, priority, arrived + self._ttft_s, prompt, 1, output))

    # The door

    def _tell_door(self, event: DoorEvent) -> None:
        if self._room.is_limited:
            self._read_inbox()
        self._door.tell(event, self._agenda.now_s)

    def _let_in(self, key: RequestKey) -> None:
        self._handle(self._running[index_of(key)], RouteDue())

    def _turn_away(self, key: RequestKey, error: CrossdockError) -> None:
        self._handle(self._running[index_of(key)], Unroutable(error))

    def _on_state(self, _: None) -> None:
        self._tell_door(RoomChanged())

    # What workers say

    def expect_state(
        self, worker: int, arrives: int, load: Load | None, stored: HashArray, removed: HashArray
    ) -> None:
        self._num_states += 1
        state = (arrives, self._num_states, self._workers[worker].worker, load, stored, removed)
        heappush(self._inbox, state)
        # What is found out late changes no worker's room: tokens to compute, and sequences. (What
        # it settles is not found out late.)
        if self._room.is_limited and load is not None and arrives >= self._agenda.now:
            self._agenda.at(arrives, self._on_state, None)

    def on_output(self, worker: int, output: TokenOutput) -> None:
        """The first or the last token of an answer; those in between come with the last."""
        running = self._running.get(request_index(output.key))
        if running is None:
            return
        delivered = running.flow.tokens_delivered
        tokens = 1 if output.finish is None else running.params.max_tokens - delivered
        self._handle(
            running,
            Output(
                self._workers[worker].worker,
                output.key.attempt,
                (output.token,) * tokens,
                "",
                output.finish,
                output.cached_tokens if output.first else 0,
            ),
        )

    def on_failure(self, worker: int, failure: FailAttempt | ReportFailure) -> None:
        key, worker_id = failure.key, self._workers[worker].worker
        self._routing.settled(key, (worker_id,))
        running = self._running.get(request_index(key))
        if running is not None:
            event = AttemptFailed(worker_id, key.attempt, failure.cause, failure.detail)
            self._handle(running, event)
        self._door.room_changed(self._agenda.now_s)

    def _read_inbox(self) -> None:
        """Takes in what has arrived by now."""
        inbox, now = self._inbox, self._agenda.now
        while inbox and inbox[0][0] <= now:
            arrived, _, worker, load, stored, removed = heappop(inbox)
            if len(stored) or len(removed):
                self._routing.caches.changed(worker, stored, removed)
            if load is not None:
                self._routing.load_reported(worker, load, arrived / FEMTOSECONDS)

    def _learn(self, prompt: RoutedPrompt) -> HeldBlocks:
        """All that a placement of ``prompt`` may depend on. Returns what each worker holds."""
        self._read_inbox()
        routing, needed = self._routing, prompt.shape.num_blocks
        held, loads = routing.overlaps(prompt), routing.loads
        late = False
        for number in self._board.that_may_matter(held, loads, needed):
            replica, known = self._workers[number], prompt.hashes[: held.of(number)]
            if replica.steps_may_matter(int(loads.free_blocks[number]), needed, known):
                replica.catch_up()
                late = True
        if not late:
            return held
        self._read_inbox()
        return routing.overlaps(prompt)

    # Requests

    def _handle(self, running: _Running, event: FlowEvent) -> None:
        if self._running.get(running.index) is not running:
            return
        for command in running.flow.handle(event, self._agenda.now_s):
            self._carry_out(running, command)

    def _carry_out(self, running: _Running, command: Command) -> None:
        match command:
            case Route():
                self._route(running, command)
            case SendOpen():
                self._send_open(running, command)
            case SendPrefill():
                self._send_prefill(running, command)
            case SendAbort():
                self._send_abort(running, command)
            case Emit():
                self._emit(running)
            case Finish():
                self._finish(running, command)
            case Fail(error):
                attempts = running.flow.lifecycle.attempts
                self._recorder.failed(running.index, self._at_client_s, attempts, _reason(error))
                self._end(running)

    def _route(self, running: _Running, command: Route) -> None:
        if command.delay_s > 0:
            time = self._agenda.now + femtoseconds(command.delay_s)
            self._agenda.at(time, self._on_route_due, running)
            return
        held = self._learn(running.routed)
        avoid = command.avoid
        if not running.flow.lifecycle.attempts:
            avoid |= self._room.laden(len(running.tokens))
        try:
            placement = self._routing.place(running.routed, avoid, held)
        except CrossdockError as error:
            self._handle(running, Unroutable(error))
        else:
            self._handle(running, Routed(placement))

    def _on_route_due(self, running: _Running) -> None:
        self._handle(running, RouteDue())

    def _send_open(self, running: _Running, command: SendOpen) -> None:
        key, placement = running.attempt_key, running.flow.placement
        if placement is not None:
            self._routing.sent(key, running.routed, placement, self._agenda.now_s)
        opened = (
            Opened(key)
            if command.handoff
            else PrefillHere(key, running.tokens, running.params, SALT, running.routed.hashes)
        )
        self._send(command.worker, opened)
        if not command.handoff:
            due = self._agenda.now + femtoseconds(SETTLE_S)
            self._agenda.at(due, self._on_settling, (running, key, command.worker))

    def _on_settling(self, sent: tuple[_Running, AttemptKey, WorkerId]) -> None:
        """A prompt that still waits counts as the worker's next report says: that of its next step,
        though it be one of a run."""
        running, key, worker = sent
        is_running = self._running.get(running.index) is running
        if is_running and not running.has_token and running.attempt_key == key:
            self._by_id[worker].catch_up()

    def _send_prefill(self, running: _Running, command: SendPrefill) -> None:
        key = running.attempt_key
        tokens, hashes = running.tokens, running.routed.hashes
        decode = command.decode.name
        submit = Submit(key, tokens, running.params, SALT, decode, hashes)
        self._send(command.worker, submit)

    def _send_abort(self, running: _Running, command: SendAbort) -> None:
        key = AttemptKey(running.flow.key, command.attempt)
        self._routing.settled(key, (command.worker,))
        time = self._agenda.now + self._message
        self._agenda.at(time, self._by_id[command.worker].abort, key)

    def _send(self, worker: WorkerId, event: Opened | PrefillHere | Submit) -> None:
        time = self._agenda.now + self._message
        self._agenda.at(time, self._by_id[worker].take, event)

    def _emit(self, running: _Running) -> None:
        if not running.has_token:
            running.has_token = True
            self._settle(running)
            self._recorder.first_token(running.index, self._at_client_s)
            self._tell_door(Started(running.flow.key))

    def _finish(self, running: _Running, command: Finish) -> None:
        prefill, decode = command.placement.prefill, command.placement.decode
        self._recorder.finished(
            running.index,
            self._at_client_s,
            command,
            -1 if prefill is None else self._by_id[prefill].number,
            self._by_id[decode].number,
        )
        self._end(running, command.cached_tokens)

    @property
    def _at_client_s(self) -> float:
        """When what the router sends now is there."""
        return (self._agenda.now + self._request) / FEMTOSECONDS

    def _end(self, running: _Running, cached_tokens: int = 0) -> None:
        if not running.has_token:
            self._settle(running)
        del self._running[running.index]
        lifecycle = running.flow.lifecycle
        computed = len(running.tokens) - cached_tokens if lifecycle.attempts else 0
        self._tell_door(Ended(running.flow.key, computed, running.flow.tokens_delivered))

    def _settle(self, running: _Running) -> None:
        placement = running.flow.placement
        if placement is not None:
            self._routing.settled(running.attempt_key, placement.workers)


def _reason(error: CrossdockError) -> str:
    return f"{error.reason} {error.field}" if isinstance(error, InvalidField) else error.reason
