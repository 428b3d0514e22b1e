"""Prefill and decode workers in one deterministic world: a seeded order of events, a virtual clock.

The production `Prefiller` and `Decoder` run here with a fake engine, a memory copy for a
transport and a network that delays, doubles and damages. Engines have any number of pipeline
stages, each with a part of every block, so that several steps are under way. A tiny router
retries like the real one: before the first token elsewhere, after it the request counts as
aborted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from fake_engine import FakeEngine, Step, expected_answer
from handoff_memory import copy_piece, described

from core.block_hash import TokenArray
from core.block_pool import BlockPool
from core.handoff import FailureCause, LeaseTimes, ToDecode, ToPrefill
from core.in_flight import InFlight
from core.lease_events import (
    Aborted,
    Copied,
    CopyPieces,
    FailAttempt,
    FromPrefill,
    Opened,
    PeerLost,
    PieceCopy,
    SendToPrefill,
)
from core.lease_events import (
    Tick as LeaseTick,
)
from core.outputs import TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import StepPlan, StepResult
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
from prefill_worker.messages import (
    Tick as PrefillTick,
)
from prefill_worker.prefiller import Prefiller

BLOCK_SIZE = 4
SALT = 7


@dataclass
class Faults:
    """Probabilities per event."""

    double: float = 0.0
    lose: float = 0.0
    damage: float = 0.0
    kill: float = 0.0
    abort: float = 0.0
    pause: float = 0.0


@dataclass
class Request:
    prompt: TokenArray
    params: SamplingParams
    attempt: int = 0
    answers: dict[int, list[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    outcome: str = ""
    worker: str = ""
    prefill: str = ""

    @property
    def tokens(self) -> list[int]:
        """Tokens of the first answer."""
        return self.answers.get(0, [])


class SimPrefill:
    """One prefill worker."""

    def __init__(
        self, name: str, num_blocks: int, times: LeaseTimes, chunk: int, depth: int
    ) -> None:
        self.name = name
        self.generations = np.zeros(num_blocks, dtype=np.uint64)
        self.engine = FakeEngine(num_blocks, BLOCK_SIZE, depth)
        self.brain = Prefiller(
            BlockPool(num_blocks, BLOCK_SIZE, self.generations),
            max_num_seqs=8,
            max_num_batched_tokens=chunk,
            eos=frozenset(),
            times=times,
            ends_by_text=lambda params, token: False,
            depth=depth,
        )

    @property
    def in_flight(self) -> InFlight:
        return self.brain.scheduler._in_flight


class SimDecode:
    """One decode worker."""

    def __init__(
        self, name: str, num_blocks: int, times: LeaseTimes, new_id: Callable[[], int], depth: int
    ) -> None:
        self.name = name
        self.engine = FakeEngine(num_blocks, BLOCK_SIZE, depth)
        self.brain = Decoder(
            BlockPool(num_blocks, BLOCK_SIZE),
            max_num_seqs=6,
            max_num_batched_tokens=24,
            eos=frozenset(),
            times=times,
            new_lease_id=new_id,
            depth=depth,
        )

    @property
    def in_flight(self) -> InFlight:
        return self.brain.sequences.in_flight


@dataclass
class Copying:
    """A copy under way; it lands some time later, maybe after its lease is gone."""

    decode: str
    life: int
    command: CopyPieces


class World:
    """Everything, and a seeded choice of what happens next.

    ``depths``: pipeline stages of each prefill and each decode worker.
    """

    def __init__(
        self,
        seed: int,
        *,
        prefills: int = 1,
        decodes: int = 1,
        prefill_blocks: int = 40,
        decode_blocks: int = 40,
        depths: tuple[int, int] = (1, 1),
        faults: Faults | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.faults = faults or Faults()
        self.times = LeaseTimes()
        self._lease_ids = iter(range(1, 10**9))
        self._sizes = (prefill_blocks, decode_blocks)
        self._depths = depths
        self.prefills = {f"P{i}": self._new_prefill(f"P{i}") for i in range(prefills)}
        self.decodes = {f"D{i}": self._new_decode(f"D{i}") for i in range(decodes)}
        self.lives = dict.fromkeys([*self.prefills, *self.decodes], 0)
        # Streams keep order: (P, D) → messages, each direction.
        self.to_decode: dict[tuple[str, str], deque[ToDecode | AnnouncePieces]] = {}
        self.to_prefill: dict[tuple[str, str], deque[ToPrefill]] = {}
        self.copies: list[Copying] = []
        self.aborts: list[tuple[str, AttemptKey]] = []
        self.requests: dict[RequestKey, Request] = {}
        self.bytes_moved = 0
        self.log: list[str] = []

    def _new_prefill(self, name: str) -> SimPrefill:
        return SimPrefill(name, self._sizes[0], self.times, chunk=12, depth=self._depths[0])

    def _new_decode(self, name: str) -> SimDecode:
        new_id = self._lease_ids.__next__
        return SimDecode(name, self._sizes[1], self.times, new_id, self._depths[1])

    # The tiny router

    def ask(self, name: str, prompt: list[int], max_tokens: int, n: int = 1) -> Request:
        key = RequestKey("default", name)
        request = Request(np.array(prompt, dtype=np.int32), SamplingParams(max_tokens, n=n))
        self.requests[key] = request
        self._dispatch(key)
        return request

    def _dispatch(self, key: RequestKey) -> None:
        request = self.requests[key]
        request.attempt += 1
        attempt = AttemptKey(key, request.attempt)
        request.worker = self.random.choice(list(self.decodes))
        decode = self.decodes[request.worker]
        if not self.prefills:
            request.prefill = ""
            event = PrefillHere(attempt, request.prompt, request.params, SALT)
            self._do_decode(decode, decode.brain.handle(event, self.now))
            return
        request.prefill = self.random.choice(list(self.prefills))
        prefill = self.prefills[request.prefill]
        submit = Submit(attempt, request.prompt, request.params, SALT, request.worker)
        opened = Opened(attempt)
        steps = [
            lambda: self._do_decode(decode, decode.brain.handle(opened, self.now)),
            lambda: self._do_prefill(prefill, prefill.brain.handle(submit, self.now)),
        ]
        self.random.shuffle(steps)
        for step in steps:
            step()

    def _abort_attempt(self, key: AttemptKey, request: Request) -> None:
        """The aborts are under way: each worker hears of it at some later moment."""
        self.aborts.append((request.worker, key))
        if request.prefill:
            self.aborts.append((request.prefill, key))

    def _deliver_abort(self, abort: tuple[str, AttemptKey]) -> None:
        self.aborts.remove(abort)
        name, key = abort
        if name in self.decodes:
            decode = self.decodes[name]
            self._do_decode(decode, decode.brain.handle(Aborted(key), self.now))
        else:
            prefill = self.prefills[name]
            self._do_prefill(prefill, prefill.brain.handle(Abort(key), self.now))

    def _current(self, key: AttemptKey) -> Request | None:
        request = self.requests[key.request]
        return request if request.attempt == key.attempt and not request.outcome else None

    def _on_token(self, output: TokenOutput) -> None:
        request = self._current(output.key)
        if request is None:
            return
        request.answers.setdefault(output.index, []).append(output.token)
        if output.finish is not None:
            request.ended.add(output.index)
        if len(request.ended) == request.params.n:
            request.outcome = "length"
            self._abort_attempt(output.key, request)

    def _on_failure(self, key: AttemptKey) -> None:
        request = self._current(key)
        if request is None:
            return
        self._abort_attempt(key, request)
        if request.answers:
            request.outcome = "aborted"
        else:
            self._dispatch(key.request)

    def _on_worker_lost(self, name: str) -> None:
        for key, request in list(self.requests.items()):
            involved = request.worker == name or (request.prefill == name and not request.answers)
            if involved and not request.outcome:
                self._on_failure(AttemptKey(key, request.attempt))

    # Commands

    def _do_prefill(self, prefill: SimPrefill, commands: list[object]) -> None:
        for command in commands:
            match command:
                case SendToDecode(worker, message):
                    self.to_decode.setdefault((prefill.name, worker), deque()).append(message)
                case AnnouncePieces(decode_worker=worker):
                    self.to_decode.setdefault((prefill.name, worker), deque()).append(command)
                case ReportFailure(key, cause, detail):
                    self.log.append(f"{prefill.name} {key} {cause} {detail}")
                    # Once D streams, P has nothing that the answer still needs.
                    if not self.requests[key.request].answers:
                        self._on_failure(key)
                case TokenOutput():
                    self._on_token(command)
                case AttemptEnded():
                    pass
                case _:
                    raise AssertionError(command)

    def _do_decode(self, decode: SimDecode, commands: list[object]) -> None:
        for command in commands:
            match command:
                case SendToPrefill(peer, message):
                    name, life = peer.split("/")
                    if int(life) == self.lives[name]:
                        self.to_prefill.setdefault((name, decode.name), deque()).append(message)
                case CopyPieces():
                    self.copies.append(Copying(decode.name, self.lives[decode.name], command))
                case FailAttempt(key, cause, detail):
                    self.log.append(f"{decode.name} {key} {cause} {detail}")
                    self._on_failure(key)
                case TokenOutput():
                    self._on_token(command)
                case _:
                    raise AssertionError(command)

    # What may happen next

    def step(self) -> None:
        """One seeded event; every now and then a fault."""
        if self.random.random() < self.faults.kill:
            self._kill(self.random.choice([*self.prefills, *self.decodes]))
        if self.random.random() < self.faults.abort:
            self._abort_some_request()
        if self.random.random() < self.faults.pause:
            self.now += self.random.choice([3.0, 12.0, 60.0])
        self.now += 0.001
        choices = self._choices()
        self.random.choice(choices)()

    def _choices(self) -> list[Callable[[], None]]:
        choices: list[Callable[[], None]] = [self._tick]
        for edge, messages in self.to_decode.items():
            if messages:
                choices.append(lambda edge=edge: self._deliver_to_decode(edge))
        for edge, answers in self.to_prefill.items():
            if answers:
                choices.append(lambda edge=edge: self._deliver_to_prefill(edge))
        for copying in self.copies:
            choices.append(lambda copying=copying: self._land(copying))
        for abort in self.aborts:
            choices.append(lambda abort=abort: self._deliver_abort(abort))
        for prefill in self.prefills.values():
            choices.append(lambda prefill=prefill: self._step_prefill(prefill))
        for decode in self.decodes.values():
            choices.append(lambda decode=decode: self._step_decode(decode))
        return choices

    def _tick(self) -> None:
        self.now += 0.25
        for prefill in self.prefills.values():
            self._do_prefill(prefill, prefill.brain.handle(PrefillTick(), self.now))
        for decode in self.decodes.values():
            self._do_decode(decode, decode.brain.handle(LeaseTick(), self.now))

    def _deliver_to_decode(self, edge: tuple[str, str]) -> None:
        message = self.to_decode[edge].popleft()
        if isinstance(message, AnnouncePieces):
            message = described(self.prefills[edge[0]].engine, message)
        decode = self.decodes[edge[1]]
        event = FromPrefill(f"{edge[0]}/{self.lives[edge[0]]}", message)
        for _ in range(self._copies_of_a_message()):
            self._do_decode(decode, decode.brain.handle(event, self.now))

    def _deliver_to_prefill(self, edge: tuple[str, str]) -> None:
        message = self.to_prefill[edge].popleft()
        prefill = self.prefills[edge[0]]
        for _ in range(self._copies_of_a_message()):
            self._do_prefill(prefill, prefill.brain.handle(FromDecode(message), self.now))

    def _copies_of_a_message(self) -> int:
        if self.random.random() < self.faults.lose:
            return 0
        return 2 if self.random.random() < self.faults.double else 1

    def _land(self, copying: Copying) -> None:
        """The bytes move now: P may long have given the block to somebody else."""
        self.copies.remove(copying)
        if self.lives[copying.decode] != copying.life:
            return
        command = copying.command
        decode = self.decodes[copying.decode]
        name, life = command.peer.split("/")
        good, bad = [], []
        for item in command.copies:
            alive = int(life) == self.lives[name]
            ok = alive and self._copy(self.prefills[name], decode, item)
            (good if ok else bad).append(item.index)
        event = Copied(command.lease_id, tuple(good), tuple(bad))
        self._do_decode(decode, decode.brain.handle(event, self.now))

    def _copy(self, prefill: SimPrefill, decode: SimDecode, item: PieceCopy) -> bool:
        source, target = prefill.engine, decode.engine
        self.bytes_moved += target.memory[:, item.destination].nbytes
        return copy_piece(
            source, prefill.generations, target, item, self.random, self.faults.damage
        )

    def _step_prefill(self, prefill: SimPrefill) -> None:
        finished = self._move_engine(prefill)
        if finished is not None:
            self._do_prefill(prefill, prefill.brain.complete_step(*finished, self.now))

    def _step_decode(self, decode: SimDecode) -> None:
        finished = self._move_engine(decode)
        if finished is not None:
            self._do_decode(decode, decode.brain.complete_step(*finished, self.now))

    def _move_engine(self, worker: SimPrefill | SimDecode) -> tuple[StepPlan, StepResult] | None:
        """A step is planned, or computed by one more stage, or comes to its end."""
        engine = worker.engine
        moves: list[Step | str] = [*engine.movable()]
        if engine.has_room:
            moves.append("plan")
        if engine.has_finished:
            moves.append("take")
        move = self.random.choice(moves)
        if move == "take":
            return engine.take_finished()
        if move == "plan":
            self._plan(worker)
        else:
            engine.advance(move)
        return None

    def _plan(self, worker: SimPrefill | SimDecode) -> None:
        plan = worker.brain.plan_step(self.now)
        if plan is not None:
            in_flight = worker.in_flight
            ids = [piece.sequence_id for piece in plan.slices]
            worker.engine.submit(plan, {i: in_flight[i].tokens for i in ids})
            if isinstance(worker, SimDecode):
                worker.brain.prepare_next()

    def _abort_some_request(self) -> None:
        running = [(k, r) for k, r in self.requests.items() if not r.outcome]
        if running:
            key, request = self.random.choice(running)
            request.outcome = "cancelled"
            self._abort_attempt(AttemptKey(key, request.attempt), request)

    def _kill(self, name: str) -> None:
        """kill −9: the worker starts again empty; peers and router see broken streams."""
        self.lives[name] += 1
        if name in self.prefills:
            self.prefills[name] = self._new_prefill(name)
            lost_peer = f"{name}/{self.lives[name] - 1}"
            for decode in self.decodes.values():
                self._do_decode(decode, decode.brain.handle(PeerLost(lost_peer), self.now))
        else:
            self.decodes[name] = self._new_decode(name)
            for prefill in self.prefills.values():
                lost = DecodeLost(name, FailureCause.DECODE_LOST, "killed")
                self._do_prefill(prefill, prefill.brain.handle(lost, self.now))
        for streams in (self.to_decode, self.to_prefill):
            for edge in [edge for edge in streams if name in edge]:
                streams[edge].clear()
        self._on_worker_lost(name)

    # Judgement

    def run(self, limit: int = 60_000) -> None:
        """Runs until every request has an outcome and every worker is idle again."""
        for _ in range(limit):
            if self._done():
                return
            self.step()
        unfinished = [k.request_id for k, r in self.requests.items() if not r.outcome]
        raise AssertionError(f"not done after {limit} events: {unfinished}; {self.log[-10:]}")

    def _done(self) -> bool:
        return (
            all(r.outcome for r in self.requests.values())
            and not self.copies
            and not self.aborts
            and all(p.brain.idle and p.engine.is_idle for p in self.prefills.values())
            and all(d.brain.idle and d.engine.is_idle for d in self.decodes.values())
        )

    def validate(self) -> None:
        """No block leaks anywhere, and no answer holds a wrong token."""
        for worker in [*self.prefills.values(), *self.decodes.values()]:
            worker.brain.validate()
            pool = worker.brain.pool
            assert pool.num_leased == 0
            assert pool.num_quarantined == 0
            assert pool.num_free + pool.num_cached == pool.num_blocks
        for request in self.requests.values():
            self._judge(request)

    @staticmethod
    def _judge(request: Request) -> None:
        for index, tokens in request.answers.items():
            answer = expected_answer(request.prompt, request.params.max_tokens, index)
            assert tokens == answer[: len(tokens)]
            assert request.outcome != "length" or len(tokens) == len(answer)
        assert request.outcome != "length" or len(request.answers) == request.params.n
