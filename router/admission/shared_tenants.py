"""What tenants have and pay on all routers together, as one of these sees it. Pure.

Covers: places for what runs, of tenants with limits on that, which the store grants one after the
other in the order of asking; what was charged to tenants' budgets, and tokens to give back to
those; what was paid for fair shares. While the store can't be asked, each router allows a part of
every limit by itself (``router.admission.admission``), and here only what runs is counted, to be
told afterwards. Does not cover: the store's side (``router.replication.store_scripts``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.tenants import Tenant
from router.admission.tenant_sums import Charged, Paid, Share


@dataclass(frozen=True, slots=True)
class Places:
    """``sequences`` that run, and the most KV ``blocks`` that they may take."""

    sequences: int = 0
    blocks: int = 0

    def __add__(self, other: Places) -> Places:
        return Places(self.sequences + other.sequences, self.blocks + other.blocks)

    def __sub__(self, other: Places) -> Places:
        return Places(self.sequences - other.sequences, self.blocks - other.blocks)

    def hold(self, other: Places) -> bool:
        return self.sequences >= other.sequences and self.blocks >= other.blocks


NO_PLACES = Places()


@dataclass(frozen=True, slots=True)
class PlacesAsked:
    """What the store is told of a tenant: what it ``has`` here and, unless that is nothing, what it
    wants beside. ``most``: on all routers together; -1: no limit."""

    tenant: str
    has: Places
    wants: Places
    most: Places


@dataclass(slots=True)
class _Tenant:
    most: Places
    runs: Places = NO_PLACES
    granted: Places = NO_PLACES
    wants: Places = NO_PLACES
    told: Places = NO_PLACES


@dataclass(slots=True)
class SharedTenants:
    """``is_shared``: the store decides on places. ``asked`` is called when one is wanted."""

    is_shared: bool = False
    asked: Callable[[], None] = lambda: None
    paid: dict[Share, Paid] = field(default_factory=dict)
    charged: dict[str, Charged] = field(default_factory=dict)
    _tenants: dict[str, _Tenant] = field(default_factory=dict)
    _given_back: dict[str, int] = field(default_factory=dict)

    # What the door says

    def may_run(self, tenant: Tenant, places: Places, all_blocks: int) -> bool:
        """Whether one more may run now; if not, the store is asked, and the door has to be told
        when it has granted something. ``all_blocks``: of the decode workers."""
        if not (self.is_shared and _is_limited(tenant)):
            return True
        state = self._of(tenant)
        state.most = _most(tenant, all_blocks)
        if state.granted.hold(places):
            return True
        state.wants = places
        self.asked()
        return False

    def began(self, tenant: Tenant, places: Places) -> None:
        if _is_limited(tenant):
            state = self._of(tenant)
            state.runs += places
            state.granted = state.granted - places if state.granted.hold(places) else NO_PLACES

    def ended(self, tenant: Tenant, places: Places) -> None:
        if _is_limited(tenant):
            self._of(tenant).runs -= places
            self.asked()

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Of a request that has come, answers included."""
        if has_budgets(tenant):
            requests, before = self.charged.get(tenant.name, Charged())
            self.charged[tenant.name] = Charged(requests + 1, before + tokens)

    def give_back(self, tenant: Tenant, tokens: int) -> None:
        """So many less than it was charged on arrival; negative: more."""
        if tokens and tenant.limits.tokens_per_minute is not None:
            self._given_back[tenant.name] = self._given_back.get(tenant.name, 0) + tokens
            requests, before = self.charged[tenant.name]
            self.charged[tenant.name] = Charged(requests, before - tokens)

    def let_in(self, share: Share, expected: float) -> None:
        """A request; what it is ``expected`` to cost is weighted."""
        ended, running = self.paid.get(share, Paid())
        self.paid[share] = Paid(ended, running + expected)

    def pay(self, share: Share, expected: float, actual: float) -> None:
        """One that was let in has ended."""
        ended, running = self.paid[share]
        # Never less than nothing, as sums of floats may be.
        self.paid[share] = Paid(ended + actual, max(0.0, running - expected))

    # What goes to the store

    def places_asked(self, *, all_of_them: bool) -> list[PlacesAsked]:
        """Of tenants that want places, or have others than the store was told; or of all that have
        any. What was granted and not taken is given back by that."""
        asked = []
        for name, state in self._tenants.items():
            is_news = state.wants != NO_PLACES or state.runs != state.told
            if is_news or (all_of_them and state.runs != NO_PLACES):
                state.granted, state.told = NO_PLACES, state.runs
                asked.append(PlacesAsked(name, state.runs, state.wants, state.most))
        return asked

    def granted(self, tenant: str, places: Places) -> None:
        """For the next one that may run. Who does not take it, asks again."""
        state = self._tenants[tenant]
        state.granted, state.wants = places, NO_PLACES
        state.told += places

    def not_told(self) -> None:
        """The store may have missed what was asked last."""
        for state in self._tenants.values():
            state.told, state.granted = Places(-1, -1), NO_PLACES

    def take_given_back(self) -> dict[str, int]:
        """Tokens by tenant, each once."""
        taken, self._given_back = self._given_back, {}
        return taken

    def _of(self, tenant: Tenant) -> _Tenant:
        state = self._tenants.get(tenant.name)
        if state is None:
            state = self._tenants[tenant.name] = _Tenant(_most(tenant, 0))
        return state


def has_budgets(tenant: Tenant) -> bool:
    limits = tenant.limits
    return (limits.requests_per_second, limits.tokens_per_minute) != (None, None)


def _is_limited(tenant: Tenant) -> bool:
    limits = tenant.limits
    return (limits.concurrent_sequences, limits.cache_share) != (None, None)


def _most(tenant: Tenant, all_blocks: int) -> Places:
    limits = tenant.limits
    sequences, share = limits.concurrent_sequences, limits.cache_share
    return Places(
        -1 if sequences is None else sequences, -1 if share is None else int(share * all_blocks)
    )
