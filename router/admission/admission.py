"""The door of a router: who is let in, who waits for its turn, who is refused.

Pure: ``handle(event, now)`` gives commands; the dispatcher carries them out, and so does the
simulator. A request waits while its tenant's limits or the workers' room don't allow it; of more
than ``max_waiting`` without a token the one that would be served last is refused. All tenants see
the same rules; with one tenant and no limits everything is let in at once.
Does not cover: whose turn it is (``router.admission.fair_queue``), what a tenant may have
(``router.admission.tenant_account``), which workers take more (``router.admission.worker_room``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.errors import CrossdockError, Overloaded
from core.request import RequestKey
from core.tenants import Tenant
from router.admission.departures import Departures
from router.admission.fair_queue import FairQueue
from router.admission.messages import (
    Admit,
    Arrived,
    DoorCommand,
    DoorEvent,
    Ended,
    Refuse,
    RoomChanged,
    Started,
)
from router.admission.shared_tenants import Places, SharedTenants
from router.admission.tenant_account import TenantAccount
from router.admission.tenant_sums import BudgetsLeft, Charged, Paid, Share
from router.admission.waiting_line import Waiting

# A token of an answer costs as much as two of a prompt: the ratio of the OSDI paper, and of most
# price lists not far away.
PROMPT_COST, ANSWER_COST = 1.0, 2.0
# What who is refused is told while nothing has been measured.
_UNKNOWN_WAIT_S = 2.0


class Room(Protocol):
    """Of the workers; see ``router.admission.worker_room``."""

    def has_room(self, prompt_tokens: int) -> bool: ...

    @property
    def decode_blocks(self) -> int: ...


@dataclass(slots=True)
class _Held:
    """A request from its arrival to its end. ``lines``: who has no token yet, of all and of its
    tenant and class. ``tokens``: of prompt and expected answers."""

    arrived: Arrived
    account: TenantAccount
    lines: tuple[Departures, Departures]
    tokens: int
    blocks: int
    cost: float
    is_in: bool = False
    has_token: bool = False

    @property
    def share(self) -> Share:
        return self.arrived.priority, self.arrived.key.tenant

    @property
    def places(self) -> Places:
        return Places(self.arrived.answers, self.blocks)


class Admission:
    """``tenant``: by name. ``block_size``: tokens of a KV block. ``shared``: what tenants have and
    pay at other doors, too; None: there is no other."""

    def __init__(
        self,
        tenant: Callable[[str], Tenant],
        room: Room,
        max_waiting: int,
        block_size: int,
        shared: SharedTenants | None = None,
    ) -> None:
        self._shared = shared
        self._part = 1.0
        self._tenant = tenant
        self._room = room
        self._max_waiting = max_waiting
        self._block_size = block_size
        self._queue = FairQueue()
        # Who has no token yet: of each tenant and class, as its own limits hold it up as well.
        self._waiting = Departures()
        self._waiting_of: dict[Share, Departures] = {}
        self._accounts: dict[str, TenantAccount] = {}
        self._held: dict[RequestKey, _Held] = {}
        self._in = 0

    @property
    def queued(self) -> int:
        """Requests that wait at the door."""
        return len(self._queue)

    def queued_of_tenants(self) -> dict[str, int]:
        return self._queue.waiting()

    def tokens_of(self, tenant: str, prompt_tokens: int, answers: int, max_tokens: int) -> int:
        """Of a request: its prompt's, and as many as its answers are expected to have."""
        return prompt_tokens + self._account(tenant).expected_tokens(answers, max_tokens)

    def allow(self, part: float, now: float) -> None:
        """This door may let so much of each tenant's limits in, 1 for all of it."""
        self._part = part
        for account in self._accounts.values():
            account.allow(part, now)

    def paid_elsewhere(self, share: Share, more: Paid) -> None:
        """At other doors, since they were last heard of."""
        self._queue.paid_elsewhere(share, more)

    def charged_elsewhere(self, tenant: str, more: Charged, now: float) -> None:
        """At other doors, since they were last heard of."""
        self._account(tenant).charge(more.requests, more.tokens, now)

    def over_budget(
        self, tenant: str, requests: int, tokens: int, now: float
    ) -> CrossdockError | None:
        """Why so many at once may not come now. Where doors share, the store was asked before."""
        if self._shared is not None and self._shared.is_shared:
            return None
        return self._account(tenant).over_budget(requests, tokens, now)

    def budgets_left(self, tenant: str, now: float) -> BudgetsLeft:
        """By what was charged here, and elsewhere as far as heard."""
        return self._account(tenant).budgets_left(now)

    def handle(self, event: DoorEvent, now: float) -> list[DoorCommand]:
        """At most one is let in at a time: what it takes has to be known before the next."""
        match event:
            case Arrived():
                refused = self._arrived(event, now)
                return [*refused, *self._next()]
            case Started():
                self._started(event.key, now)
            case Ended():
                self._ended(event, now)
            case RoomChanged():
                pass
        return self._next()

    def _arrived(self, event: Arrived, now: float) -> list[DoorCommand]:
        account = self._account(event.key.tenant)
        expected = account.expected_tokens(event.answers, event.max_tokens)
        tokens = event.prompt_tokens + expected
        refusal = account.refusal(event.answers)
        if refusal is None and not event.in_budget:
            refusal = self.over_budget(event.key.tenant, 1, tokens, now)
        if refusal is not None:
            return [Refuse(event.key, refusal)]
        account.charge(1, tokens, now)
        if self._shared is not None:
            self._shared.charge(account.tenant, tokens)
        blocks = account.blocks_of(event.prompt_tokens, event.answers, event.max_tokens)
        cost = PROMPT_COST * event.prompt_tokens + ANSWER_COST * expected
        lines = self._waiting, self._line_of((event.priority, event.key.tenant))
        held = _Held(event, account, lines, tokens, blocks, cost)
        self._held[event.key] = held
        for line in lines:
            line.arrived(now)
        return self._take_up(held, now)

    def _take_up(self, held: _Held, now: float) -> list[DoorCommand]:
        """Mostly nobody waits, and there is room."""
        event, weight = held.arrived, held.account.tenant.weight
        tokens = event.prompt_tokens
        is_full = self._waiting.waiting > self._max_waiting
        if not is_full and not self._queue and self._may_run(held) and self._has_room(tokens):
            self._queue.pass_through(held.share, held.cost / weight)
            return [self._let_in(held)]
        waiting = Waiting(event.key, event.priority, event.due, held.cost, weight, tokens)
        self._queue.add(waiting)
        return [self._give_up_last(now)] if is_full else []

    def _give_up_last(self, now: float) -> Refuse:
        key = self._queue.last().key
        held = self._held[key]
        every, own = held.lines
        wait = own.wait_s(now) or every.wait_s(now) or _UNKNOWN_WAIT_S
        self._correct(held, 0, now)
        self._forget(held)
        return Refuse(key, _too_many(self._max_waiting, wait))

    def _next(self) -> list[DoorCommand]:
        # Mostly the shortest finds no room, and nobody's turn has to be found out.
        if not self._queue or not self._has_room(self._queue.shortest):
            return []
        waiting = self._queue.next(self._may_go, self._has_room)
        if waiting is None:
            return []
        self._queue.leave(waiting)
        return [self._let_in(self._held[waiting.key])]

    def _let_in(self, held: _Held) -> Admit:
        held.is_in = True
        self._in += 1
        held.account.began(held.arrived.answers, held.blocks)
        if self._shared is not None:
            self._shared.began(held.account.tenant, held.places)
            self._shared.let_in(held.share, held.cost / held.account.tenant.weight)
        return Admit(held.arrived.key)

    def _has_room(self, prompt_tokens: int) -> bool:
        """While nothing is in, nothing will end and make room: whatever workers seem to have before
        them is not known to this router, and old."""
        return not self._in or self._room.has_room(prompt_tokens)

    def _may_go(self, waiting: Waiting) -> bool:
        return self._may_run(self._held[waiting.key])

    def _may_run(self, held: _Held) -> bool:
        """By its tenant's limits."""
        blocks = self._room.decode_blocks
        if not held.account.has_room(held.arrived.answers, held.blocks, blocks):
            return False
        tenant = held.account.tenant
        return self._shared is None or self._shared.may_run(tenant, held.places, blocks)

    def _started(self, key: RequestKey, now: float) -> None:
        held = self._held.get(key)
        if held is not None and not held.has_token:
            held.has_token = True
            for line in held.lines:
                line.left(now)

    def _ended(self, event: Ended, now: float) -> None:
        held = self._held.get(event.key)
        if held is None:
            return
        if held.is_in:
            self._settle(held, event)
        used = event.computed_tokens + event.generated_tokens if held.is_in else 0
        self._correct(held, used, now)
        self._forget(held)

    def _correct(self, held: _Held, used: int, now: float) -> None:
        """So many of the tokens that were taken on arrival were used."""
        held.account.charge(0, used - held.tokens, now)
        if self._shared is not None:
            self._shared.give_back(held.account.tenant, held.tokens - used)

    def _settle(self, held: _Held, event: Ended) -> None:
        """It was let in at an expected cost."""
        cost = PROMPT_COST * event.computed_tokens + ANSWER_COST * event.generated_tokens
        tenant = held.account.tenant
        expected, actual = held.cost / tenant.weight, cost / tenant.weight
        self._queue.settle(held.share, expected, actual)
        held.account.ended(held.arrived.answers, held.blocks, event.generated_tokens)
        if self._shared is not None:
            self._shared.ended(tenant, held.places)
            self._shared.pay(held.share, expected, actual)
        self._in -= 1

    def _forget(self, held: _Held) -> None:
        key = held.arrived.key
        del self._held[key]
        if not held.is_in:
            self._queue.remove(key, held.arrived.priority)
        if not held.has_token:
            for line in held.lines:
                line.gave_up()

    def _line_of(self, share: Share) -> Departures:
        line = self._waiting_of.get(share)
        if line is None:
            line = self._waiting_of[share] = Departures()
        return line

    def _account(self, name: str) -> TenantAccount:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = TenantAccount(self._tenant(name), self._block_size)
            account.allow(self._part, 0.0)
        return account


def _too_many(limit: int, wait_s: float) -> Overloaded:
    return Overloaded(
        f"{limit} requests wait already; try again in {wait_s:.1f} s",
        reason="QUEUE_FULL",
        metadata={"limit": str(limit)},
        retry_after=wait_s,
    )
