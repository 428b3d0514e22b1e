"""What a call claims of all routers before it starts, with a store that answers as it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from core.errors import AlreadyExists, Overloaded
from core.request import RequestKey, SamplingParams
from core.tenants import Tenant, TenantLimits
from router.admission.tenant_sums import BudgetsLeft
from router.replication.redis_store import Claim, ClaimResult
from router.replication.request_claims import RequestClaims
from router.replication.store_health import StoreHealth
from router.requests.answer_stream import Prompt

ALLOWED = ClaimResult(None, 0.0, 0.0)
LEFT = BudgetsLeft(0.5)
LIMITED = Tenant("alice", limits=TenantLimits(requests_per_second=1))


@dataclass
class Store:
    """Answers each claim with the next of ``results``."""

    results: list[ClaimResult]
    claims: list[Claim] = field(default_factory=list)
    kept: dict[RequestKey, bool] = field(default_factory=dict)
    owners: dict[RequestKey, str | None] = field(default_factory=dict)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def claim(self, router: str, claim: Claim, kept_s: float) -> ClaimResult:
        self.claims.append(claim)
        await self.may_answer.wait()
        return self.results[len(self.claims) - 1]

    async def keep(self, router: str, requests: dict[RequestKey, bool], kept_s: float) -> None:
        self.kept = requests
        self.owners |= {key: "a" if runs else None for key, runs in requests.items()}

    async def owner(self, key: RequestKey) -> str | None:
        return self.owners.get(key)


@dataclass
class Requests:
    """Of a router that runs all that is claimed, or nothing."""

    are_running: bool = True

    def check_id(self, key: RequestKey) -> None:
        pass

    def is_running(self, key: RequestKey) -> bool:
        return self.are_running

    def budgets_left(self, tenant: str) -> BudgetsLeft:
        return LEFT

    def tokens_of(self, prompt: Prompt) -> int:
        return 10 + len(prompt.tokens)


def claims_of(store: Store, requests: Requests | None = None) -> RequestClaims:
    health = StoreHealth()
    health.answered(0.0)
    return RequestClaims(
        "a",
        store,  # type: ignore[arg-type]
        health,
        requests or Requests(),
        lambda name: LIMITED,
        lambda error: None,
        lambda seconds: None,
    )


def prompt(name: str, tokens: int = 5) -> Prompt:
    ids, hashes = np.zeros(tokens, np.int32), np.zeros(0, np.uint64)
    sampling = SamplingParams(max_tokens=1, seed=0)
    return Prompt(RequestKey("alice", name), 0.0, ids, hashes, 0, sampling, None)


async def test_all_prompts_of_a_call_are_claimed_at_once() -> None:
    store = Store([ALLOWED])
    prompts = [prompt("a", 5), prompt("b", 7), prompt("c", 1)]
    await claims_of(store).claim(prompts, [prompts[0].key])
    assert store.claims == [Claim(LIMITED, [prompts[0].key], 3, 43, LEFT)]


async def test_ids_of_a_refused_call_are_this_routers_no_longer() -> None:
    """Else it would tell the store again and again that they run."""
    store = Store([ClaimResult(None, 2.0, 0.0)])
    claims, one = claims_of(store), prompt("a")
    with pytest.raises(Overloaded, match="requests_per_second"):
        await claims.claim([one], [one.key])
    await claims.tell(all_of_them=True)
    assert store.kept == {}


async def test_who_asks_for_an_id_that_runs_here_ends_nothing() -> None:
    one = prompt("a")
    store = Store([ALLOWED, ClaimResult(one.key, 0.0, 0.0)])
    claims = claims_of(store)
    await claims.claim([one], [one.key])
    with pytest.raises(AlreadyExists):
        await claims.claim([one], [one.key])
    await claims.tell(all_of_them=True)
    assert store.kept == {one.key: True}


async def test_an_emptied_store_lacks_what_has_run_for_longest() -> None:
    """What came after that is there again, and proves nothing."""
    store = Store([ALLOWED] * 2)
    claims, old, new = claims_of(store), prompt("old"), prompt("new")
    assert not await claims.are_forgotten()
    await claims.claim([old], [old.key])
    await claims.tell(all_of_them=True)
    assert not await claims.are_forgotten()
    store.owners.clear()
    await claims.claim([new], [new.key])
    store.owners[new.key] = "a"
    assert await claims.are_forgotten()
    await claims.tell(all_of_them=True)
    assert not await claims.are_forgotten()


async def test_what_is_being_claimed_while_ids_are_renewed_is_renewed_the_next_time() -> None:
    store, requests, one = Store([ALLOWED]), Requests(are_running=False), prompt("a")
    claims = claims_of(store, requests)
    store.may_answer.clear()
    claiming = asyncio.create_task(claims.claim([one], [one.key]))
    await asyncio.sleep(0)
    await claims.tell(all_of_them=True)
    assert store.kept == {}
    store.may_answer.set()
    await claiming
    requests.are_running = True
    await claims.tell(all_of_them=True)
    assert store.kept == {one.key: True}


async def test_an_id_that_nobody_waits_for_any_more_is_not_kept() -> None:
    store, one = Store([ALLOWED]), prompt("a")
    claims = claims_of(store)
    store.may_answer.clear()
    claiming = asyncio.create_task(claims.claim([one], [one.key]))
    await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    await claims.tell(all_of_them=True)
    assert store.kept == {}
