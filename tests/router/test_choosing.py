"""Who may get an attempt: by role, by the size of the pool, by what failed before."""

from dataclasses import replace
from random import Random

import pytest
from predicted_workers import Worker, decode, mixed, predict, prefill, usable

from core.errors import Unavailable
from router.placement import Disaggregation, Mode, Placement, WorkerId
from router.routing.candidates import PromptShape
from router.routing.choosing import Eligibility, choose
from router.routing.policies.make import make_policy
from router.routing.policies.policy import PolicyName
from router.slo import SloTargets

P0, P1, D0, D1, M0 = (WorkerId(name, 1) for name in ("p0", "p1", "d0", "d1", "m0"))
AUTO, ALWAYS = Disaggregation.AUTO, Disaggregation.ALWAYS
EVERY_POLICY = pytest.mark.parametrize("policy", PolicyName)


def place(
    *workers: Worker,
    avoid: set[WorkerId] | None = None,
    mode: Disaggregation = ALWAYS,
    policy: PolicyName = PolicyName.KV_AWARE,
    seed: int = 0,
) -> Placement:
    eligible = Eligibility(usable(*workers), mode).of(
        PromptShape(100, 16), avoid=frozenset(avoid or ())
    )
    return choose(eligible, predict(*workers), make_policy(policy, SloTargets()), Random(seed))


@EVERY_POLICY
def test_a_prefill_worker_is_used_when_there_is_one(policy: PolicyName) -> None:
    assert place(prefill("p0"), decode("d0"), policy=policy) == Placement(D0, P0)


@EVERY_POLICY
def test_without_prefill_workers_the_decode_worker_does_it_all(policy: PolicyName) -> None:
    assert place(decode("d0"), mode=AUTO, policy=policy) == Placement(D0)
    assert place(mixed("m0"), mode=AUTO, policy=policy) == Placement(M0)


@EVERY_POLICY
def test_only_decode_workers_take_handoffs(policy: PolicyName) -> None:
    busy = decode("d0", 9)
    assert place(prefill("p0"), mixed("m0"), mode=AUTO, policy=policy) == Placement(M0)
    assert place(prefill("p0"), mixed("m0"), busy, policy=policy) == Placement(D0, P0)
    with pytest.raises(Unavailable, match="no decode worker"):
        place(prefill("p0"), mixed("m0"), policy=policy)


@EVERY_POLICY
def test_always_means_no_local_prefill(policy: PolicyName) -> None:
    with pytest.raises(Unavailable, match="no prefill worker"):
        place(decode("d0"), policy=policy)


@EVERY_POLICY
def test_a_seed_repeats_the_choice(policy: PolicyName) -> None:
    workers = (prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    chosen = [place(*workers, policy=policy, seed=seed) for seed in range(40)]
    assert chosen == [place(*workers, policy=policy, seed=seed) for seed in range(40)]
    if policy is not PolicyName.ROUND_ROBIN:
        assert {(c.prefill, c.decode) for c in chosen} == {
            (p, d) for p in (P0, P1) for d in (D0, D1)
        }


@EVERY_POLICY
def test_workers_that_failed_this_request_are_avoided(policy: PolicyName) -> None:
    workers = (prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    for seed in range(20):
        chosen = place(*workers, avoid={P0, D1}, policy=policy, seed=seed)
        assert chosen == Placement(D0, P1)


def test_when_every_prefill_worker_failed_the_decode_worker_prefills() -> None:
    workers = (prefill("p0"), decode("d0"))
    assert place(*workers, avoid={P0}, mode=AUTO) == Placement(D0, is_direct=True)
    assert place(*workers, avoid={P0}) == Placement(D0, P0)


def test_the_only_decode_worker_is_taken_again() -> None:
    assert place(prefill("p0"), decode("d0"), avoid={D0}) == Placement(D0, P0)


def test_no_decode_worker_says_when_to_come_back() -> None:
    with pytest.raises(Unavailable, match="no decode worker") as caught:
        place(prefill("p0"))
    assert caught.value.retry_after is not None


@EVERY_POLICY
def test_a_worker_with_too_small_a_pool_is_left_out(policy: PolicyName) -> None:
    small = replace(prefill("p0", held=6), blocks=6)
    for seed in range(5):
        workers = (small, prefill("p1", 9000, blocks=7), decode("d0"))
        assert place(*workers, policy=policy, seed=seed).prefill == P1


def test_a_placement_tells_what_was_expected() -> None:
    workers = (prefill("p0", held=3), decode("d0"))
    expected = predict(*workers).forecast(decode=1, prefill=0)
    assert place(*workers).forecast == expected


def test_a_decode_worker_that_answers_sooner_alone_is_asked_at_once_if_that_is_allowed() -> None:
    workers = (prefill("p0", 5000), decode("d0", held=6))
    direct = place(*workers, mode=AUTO)
    assert (direct.prefill, direct.decode, direct.mode) == (None, D0, Mode.DIRECT)
    assert direct.forecast == predict(*workers).forecast(decode=1, prefill=None)
    for mode in (Disaggregation.PREFER, ALWAYS):
        assert place(*workers, mode=mode).mode is Mode.HANDOFF
    assert place(decode("d0"), mode=Disaggregation.PREFER).mode is Mode.LOCAL
