"""Sends an attempt to its workers, and what happens to it afterwards.

Covers: the two halves of an attempt, aborts, relays, tickets for the client.
Does not cover: the messages' fields (``router.requests.assignments``), when they are sent
(``router.flow.flow``).
"""

from __future__ import annotations

from collections.abc import Callable

from core.request import AttemptKey
from router.flow.messages import (
    Emit,
    GiveTicket,
    SendAbort,
    SendOpen,
    SendPrefill,
    SendRelay,
    Ticket,
)
from router.metrics.metrics import Metrics
from router.requests.answer_numbers import AnswerNumbers
from router.requests.assignments import Assignment, abort_message, relay_message
from router.requests.read_tickets import ReadTickets
from router.requests.running_request import RunningRequest
from router.routing.routing_state import RoutingState
from router.workers.worker_pool import WorkerPool

Send = SendOpen | SendPrefill | SendAbort | SendRelay


class AttemptSender:
    """For all requests. ``clock`` gives seconds, monotonic."""

    def __init__(
        self,
        pool: WorkerPool,
        routing: RoutingState,
        numbers: AnswerNumbers,
        tickets: ReadTickets,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._routing = routing
        self._numbers = numbers
        self._tickets = tickets
        self._metrics = metrics
        self._clock = clock

    def send(self, running: RunningRequest, command: Send) -> None:
        match command:
            case SendOpen():
                self._open(running, command)
            case SendPrefill():
                self._prefill(running, command)
            case SendAbort():
                self._abort(running, command)
            case SendRelay():
                self._metrics.relayed()
                self._pool.send(command.worker, relay_message(running.attempt_key, command))

    def _open(self, running: RunningRequest, command: SendOpen) -> None:
        """The first that is sent of an attempt."""
        key, placement = running.attempt_key, running.flow.placement
        if running.flow.lifecycle.attempts > 1:
            self._metrics.retried()
        if placement is not None:
            self._routing.sent(key, running.routed, placement, self._clock())
        running.assignment = Assignment(key, running.prompt)
        first = self._numbers.give(running)
        self._pool.send(command.worker, running.assignment.open_message(command, first))

    def _prefill(self, running: RunningRequest, command: SendPrefill) -> None:
        assert running.assignment is not None
        endpoint = self._pool.endpoint(command.decode)
        self._pool.send(command.worker, running.assignment.prefill_message(command, endpoint))

    def _abort(self, running: RunningRequest, command: SendAbort) -> None:
        key = AttemptKey(running.prompt.key, command.attempt)
        self._routing.settled(key, (command.worker,))
        self._pool.send(command.worker, abort_message(key))

    def give_ticket(self, running: RunningRequest, command: GiveTicket) -> None:
        """Without a worker: an empty one, which says that tokens come through the router."""
        endpoint, ticket = "", b""
        if command.worker is not None:
            endpoint = self._pool.token_stream(command.worker)
            ticket = self._tickets.issue(command.worker, running.attempt_key)
        running.receiver.event(Emit((), "", ticket=Ticket(command.attempt, endpoint, ticket)))
