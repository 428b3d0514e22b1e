"""What a call needs of all routers before it starts: its requests' ids and its tenant's budgets.

One call to the store, only if the client chose an id or the tenant has limits on its rates: all
that the call needs, or nothing if it is refused. It is bounded, and a store that does not answer is
waited for once. Then, and while the store is known to be lost, this router decides by what it knows
itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from core.request import REQUEST_ID_KEPT_S, RequestKey
from core.tenants import Tenant
from router.admission.shared_tenants import has_budgets
from router.admission.tenant_account import over_limit
from router.admission.tenant_sums import BudgetsLeft
from router.replication.redis_store import Claim, RedisStore
from router.replication.store_calls import StoreLost
from router.replication.store_health import StoreHealth
from router.requests.answer_stream import Prompt
from router.requests.request_ids import id_taken

# An id is written anew this often, so that the store keeps it for as long as its request runs.
RENEW_S = REQUEST_ID_KEPT_S / 3


class Requests(Protocol):
    """``router.requests.dispatcher.Dispatcher``."""

    def check_id(self, key: RequestKey) -> None: ...
    def is_running(self, key: RequestKey) -> bool: ...
    def tokens_of(self, prompt: Prompt) -> int: ...
    def budgets_left(self, tenant: str) -> BudgetsLeft: ...


class RequestClaims:
    """``lost`` is told when the store fails, ``took`` how many seconds a call took. ``tenant``: by
    name."""

    def __init__(
        self,
        router: str,
        store: RedisStore,
        health: StoreHealth,
        requests: Requests,
        tenant: Callable[[str], Tenant],
        lost: Callable[[StoreLost], None],
        took: Callable[[float], None],
    ) -> None:
        self._router = router
        self._store = store
        self._health = health
        self._requests = requests
        self._tenant = tenant
        self._lost = lost
        self._took = took
        # Requests with an id of the client's choice, oldest first, and those that have ended since
        # the store was told last.
        self._chosen: dict[RequestKey, None] = {}
        self._ended: set[RequestKey] = set()
        # Of those that are chosen: what the store has not answered yet.
        self._asked: set[RequestKey] = set()

    async def claim(self, prompts: Sequence[Prompt], chosen: Sequence[RequestKey]) -> None:
        """What a call needs for all its prompts, at least one; raises AlreadyExists or Overloaded.
        ``chosen``: ids that the client chose; others are new in any case."""
        for prompt in prompts:
            self._requests.check_id(prompt.key)
        tenant = self._tenant(prompts[0].key.tenant)
        if not (chosen or has_budgets(tenant)):
            return
        new = [key for key in chosen if key not in self._chosen]
        self._chosen |= dict.fromkeys(new)
        if self._health.is_shared:
            tokens = sum(map(self._requests.tokens_of, prompts))
            left = self._requests.budgets_left(tenant.name)
            self._asked.update(new)
            try:
                await self._ask(Claim(tenant, chosen, len(prompts), tokens, left))
            except BaseException:
                self._drop(new)
                raise
            finally:
                self._asked.difference_update(new)

    def _drop(self, keys: Sequence[RequestKey]) -> None:
        for key in keys:
            self._chosen.pop(key, None)

    async def _ask(self, claim: Claim) -> None:
        began = time.perf_counter()
        try:
            result = await self._store.claim(self._router, claim, REQUEST_ID_KEPT_S)
        except StoreLost as error:
            self._lost(error)
            return
        self._took(time.perf_counter() - began)
        if result.taken is not None:
            raise id_taken(result.taken)
        if result.requests_wait_s > 0:
            raise over_limit(claim.tenant, "requests_per_second", result.requests_wait_s)
        if result.tokens_wait_s > 0:
            raise over_limit(claim.tenant, "tokens_per_minute", result.tokens_wait_s)

    async def is_elsewhere(self, key: RequestKey) -> bool:
        """Whether another router runs it, as far as known."""
        if not self._health.is_shared:
            return False
        try:
            owner = await self._store.owner(key)
        except StoreLost as error:
            self._lost(error)
            return False
        return owner not in (None, self._router)

    def ended(self, key: RequestKey) -> None:
        if key in self._chosen:
            del self._chosen[key]
            self._ended.add(key)

    async def are_forgotten(self) -> bool:
        """Whether the store was emptied since ids were told: it lacks the one that has run for
        longest. Raises ``StoreLost``."""
        running = next(filter(self._requests.is_running, self._chosen), None)
        return running is not None and await self._store.owner(running) is None

    async def tell(self, *, all_of_them: bool) -> None:
        """The store keeps ids for a while after their requests, and, now and again, those of all
        that run. Raises ``StoreLost``."""
        told = dict.fromkeys(self._ended, False)
        if all_of_them:
            running = list(filter(self._requests.is_running, self._chosen))
            told |= dict.fromkeys(running, True)
            kept = {*running, *self._asked}
            self._chosen = dict.fromkeys(key for key in self._chosen if key in kept)
        self._ended = set()
        await self._store.keep(self._router, told, REQUEST_ID_KEPT_S)
