"""Places of tenants with limits, as one router counts and asks for them."""

import pytest

from core.tenants import Tenant, TenantLimits
from router.admission.shared_tenants import NO_PLACES, Places, PlacesAsked, SharedTenants
from router.admission.tenant_sums import Charged, Paid

ALICE = Tenant("alice", limits=TenantLimits(concurrent_sequences=4))
SHARER = Tenant("sharer", limits=TenantLimits(cache_share=0.5))
FREE = Tenant("free")
ONE = Places(1, 10)
MOST = Places(4, -1)


def sharing() -> SharedTenants:
    return SharedTenants(is_shared=True)


def test_who_has_no_limits_is_not_asked_about() -> None:
    tenants = sharing()
    assert tenants.may_run(FREE, ONE, 100)
    tenants.began(FREE, ONE)
    tenants.ended(FREE, ONE)
    assert tenants.places_asked(all_of_them=True) == []


def test_a_place_is_asked_for_granted_and_taken() -> None:
    tenants, asked = sharing(), []
    tenants.asked = lambda: asked.append("asked")
    assert not tenants.may_run(ALICE, ONE, 100)
    assert asked == ["asked"]
    [ask] = tenants.places_asked(all_of_them=False)
    assert ask == PlacesAsked("alice", NO_PLACES, ONE, MOST)
    tenants.granted("alice", ONE)
    assert tenants.may_run(ALICE, ONE, 100)
    tenants.began(ALICE, ONE)
    assert not tenants.may_run(ALICE, ONE, 100), "a place is for one"


def test_the_store_knows_of_a_granted_place_and_is_told_when_it_ends() -> None:
    tenants = sharing()
    tenants.may_run(ALICE, ONE, 100)
    tenants.places_asked(all_of_them=False)
    tenants.granted("alice", ONE)
    tenants.began(ALICE, ONE)
    assert tenants.places_asked(all_of_them=False) == []
    assert tenants.places_asked(all_of_them=True) == [PlacesAsked("alice", ONE, NO_PLACES, MOST)]
    tenants.ended(ALICE, ONE)
    [ask] = tenants.places_asked(all_of_them=False)
    assert (ask.has, ask.wants) == (NO_PLACES, NO_PLACES)
    assert tenants.places_asked(all_of_them=False) == []


def test_a_place_that_nobody_takes_is_given_back() -> None:
    tenants = sharing()
    tenants.may_run(ALICE, ONE, 100)
    tenants.places_asked(all_of_them=False)
    tenants.granted("alice", ONE)
    [ask] = tenants.places_asked(all_of_them=False)
    assert (ask.has, ask.wants) == (NO_PLACES, NO_PLACES)
    assert not tenants.may_run(ALICE, ONE, 100)


def test_blocks_are_limited_by_what_all_workers_have() -> None:
    tenants = sharing()
    assert not tenants.may_run(SHARER, ONE, 100)
    [ask] = tenants.places_asked(all_of_them=False)
    assert ask.most == Places(-1, 50)


def test_without_the_store_what_runs_is_counted_and_told_afterwards() -> None:
    tenants = SharedTenants()
    assert tenants.may_run(ALICE, ONE, 100)
    tenants.began(ALICE, ONE)
    tenants.not_told()
    tenants.is_shared = True
    [ask] = tenants.places_asked(all_of_them=False)
    assert (ask.has, ask.wants) == (ONE, NO_PLACES)


def test_all_is_told_again_when_the_store_may_have_missed_it() -> None:
    tenants = sharing()
    tenants.may_run(ALICE, ONE, 100)
    tenants.places_asked(all_of_them=False)
    tenants.granted("alice", ONE)
    tenants.began(ALICE, ONE)
    assert tenants.places_asked(all_of_them=False) == []
    tenants.not_told()
    assert [ask.has for ask in tenants.places_asked(all_of_them=False)] == [ONE]


def test_tokens_are_given_back_once_and_only_where_they_are_limited() -> None:
    tenants = sharing()
    limited = Tenant("limited", limits=TenantLimits(tokens_per_minute=100))
    for tenant in (limited, FREE):
        tenants.charge(tenant, 10)
        tenants.give_back(tenant, 5)
    tenants.give_back(limited, -2)
    assert tenants.take_given_back() == {"limited": 3}
    assert tenants.take_given_back() == {}
    assert tenants.charged == {"limited": Charged(1, 7)}


def test_what_runs_is_paid_as_expected_until_it_has_ended() -> None:
    tenants, share = sharing(), (0, "free")
    tenants.let_in(share, 0.1)
    tenants.let_in(share, 0.2)
    tenants.pay(share, 0.1, 7.0)
    assert tenants.paid == {share: Paid(7.0, pytest.approx(0.2))}
    tenants.pay(share, 0.3, 1.0)
    assert tenants.paid == {share: Paid(8.0, 0.0)}
