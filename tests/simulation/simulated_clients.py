"""Clients that ask routers, and judge what they get: each answer whole, once, or honestly refused.

They try again as ``crossdock.client`` does: with a new id, and only while nothing was received.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fake_engine import expected_answer
from simulated_network import Network
from simulated_routers import SimRouter
from simulated_workers import BLOCK_SIZE

from core.block_hash import TokenArray, block_hashes
from core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestCancelled,
    Unavailable,
)
from core.request import RequestKey, SamplingParams
from router.flow.messages import Emit, Fail, Finish
from router.requests.answer_stream import AnswerEvent, Choice, Prompt

SALT = 7
_PAUSE_S = 0.2


@dataclass(eq=False)
class Call:
    """One try. ``close`` ends it from the client's side."""

    router: SimRouter
    number: int
    is_open: bool = True
    close: Callable[[], None] = lambda: None


@dataclass(eq=False)
class Client:
    """One request of a user. ``outcome``: "" while it runs; "finished", "cut" (after some of the
    answer had come), "expired", "left", "taken" (its id was). ``routers``: those that can be
    reached. ``request_id``: of all tries; "": a new one each time."""

    network: Network
    routers: Callable[[], list[SimRouter]]
    name: str
    tokens: TokenArray
    params: SamplingParams
    tenant: str = "default"
    patience_s: float | None = None
    outcome: str = ""
    call: Call | None = None
    tries: int = 0
    request_id: str = ""
    answers: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    began: float = 0.0

    def ask(self) -> None:
        if self.outcome:
            return
        routers = self.routers()
        if not routers:
            self.network.after(_PAUSE_S, self.ask)
            return
        self.began = self.began or self.network.now
        self.tries += 1
        self.call = call = Call(self.network.random.choice(routers), self.tries)
        # The router may answer at once.
        call.close = call.router.start(self._prompt(), _Heard(self, call))

    def _prompt(self) -> Prompt:
        now, patience = self.network.now, self.patience_s
        return Prompt(
            key=RequestKey(self.tenant, self.request_id or f"{self.name}-{self.tries}"),
            arrived=now,
            tokens=self.tokens,
            hashes=block_hashes(self.tokens, BLOCK_SIZE, SALT),
            salt=SALT,
            sampling=self.params,
            deadline=None if patience is None else self.began + patience,
        )

    def leave(self) -> None:
        """Its user has gone."""
        call = self.call
        if call is not None and call.is_open and call.router.is_alive and not self.outcome:
            self.outcome = "left"
            call.close()
            assert not call.is_open

    def lose(self, router: SimRouter) -> None:
        """The connection to this router broke, whatever it was about to say."""
        call = self.call
        if call is not None and call.router is router and call.is_open:
            call.is_open = False
            self._again_or("cut")

    def _again_or(self, outcome: str) -> None:
        if self.answers or self.finished:
            self._end(outcome)
        else:
            self.network.after(_PAUSE_S * self.network.random.random(), self.ask)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self.network.note(f"{self.name} {outcome} {self.answers}")

    def hear(self, call: Call, event: AnswerEvent) -> None:
        assert call is self.call
        assert call.is_open, f"{self.name} hears {event} after its end"
        match event:
            case Emit():
                self._take(event)
            case Finish():
                self._finish(call, event)
            case Fail(error):
                call.is_open = False
                self._fail(error)

    def _take(self, event: Emit) -> None:
        assert event.index not in self.finished
        self.answers.setdefault(event.index, []).extend(event.token_ids)
        self.texts[event.index] = self.texts.get(event.index, "") + event.text
        self._judge()

    def _finish(self, call: Call, event: Finish) -> None:
        assert event.index not in self.finished
        self.finished.add(event.index)
        assert event.completion_tokens == len(self.answers[event.index]) == self.params.max_tokens
        if len(self.finished) == self.params.n:
            call.is_open = False
            self._end("finished")

    def _fail(self, error: Exception) -> None:
        self.network.note(f"{self.name} hears {error}")
        match error:
            case RequestCancelled():
                assert self.outcome == "left"
            case DeadlineExceeded():
                assert self.patience_s is not None
                assert self.network.now > self.began + self.patience_s - 1e-6
                self._end("expired")
            case RequestAborted():
                assert self.answers
                self._end("cut")
            case Unavailable() | Overloaded():
                assert error.retry_after is not None
                assert not self.answers
                self._again_or("cut")
            case AlreadyExists():
                assert self.request_id
                self._end("taken")
            case _:
                raise error

    def _judge(self) -> None:
        for index, tokens in self.answers.items():
            whole = expected_answer(self.tokens, self.params.max_tokens, index)
            assert tokens == whole[: len(tokens)], f"{self.name} got other tokens, or some twice"
            assert self.texts[index].split() == [str(token) for token in tokens]


class _Heard:
    """The receiver of one try."""

    def __init__(self, client: Client, call: Call) -> None:
        self._client, self._call = client, call

    def choice(self, index: int) -> Choice:
        return Choice(_HeardTokens(self, index))

    def event(self, event: AnswerEvent) -> None:
        self._client.hear(self._call, event)


class _HeardTokens:
    def __init__(self, heard: _Heard, index: int) -> None:
        self._heard, self._index = heard, index

    def token(self, token_id: int, text: str) -> None:
        self._heard.event(Emit((token_id,), text, self._index))
