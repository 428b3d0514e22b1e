"""Which workers each policy takes, by what they hold and how busy they are."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from predicted_workers import Worker, decode, mixed, predict, prefill, usable

from router.placement import Disaggregation
from router.routing.candidates import PromptShape
from router.routing.choosing import Eligibility
from router.routing.policies.make import make_policy
from router.routing.policies.policy import Choice, Eligible, Policy, PolicyName
from router.slo import SloTargets

SLO = SloTargets(ttft_s=1.0, tpot_s=0.05)


def eligible(workers: tuple[Worker, ...]) -> Eligible:
    """No prefill worker's prompts are computed by others."""
    mode = Disaggregation.PREFER
    return Eligibility(usable(*workers), mode).of(PromptShape(1, 16))


def chosen(
    *workers: Worker, policy: Policy | PolicyName = PolicyName.KV_AWARE, tokens: int = 100
) -> tuple[str | None, str]:
    """The names of P and D."""
    chooser = make_policy(policy, SLO) if isinstance(policy, PolicyName) else policy
    choice = chooser.choose(eligible(workers), predict(*workers, tokens=tokens), Random(0))
    source = None if choice.prefill is None else workers[choice.prefill].name
    return source, workers[choice.decode].name


# kv_aware


def test_the_longer_cached_prefix_wins() -> None:
    assert chosen(prefill("cold", held=1), prefill("warm", held=4), decode("d"))[0] == "warm"
    assert chosen(mixed("cold"), mixed("warm", held=4)) == (None, "warm")


def test_a_long_queue_outweighs_a_cached_prefix() -> None:
    assert chosen(prefill("idle"), prefill("warm", 5000, held=6), decode("d"))[0] == "idle"
    assert chosen(mixed("idle"), mixed("warm", pending=5000, held=6)) == (None, "idle")


def test_the_less_busy_decode_worker_wins() -> None:
    assert chosen(prefill("p"), decode("busy", 5), decode("idle", 1))[1] == "idle"


def test_of_equal_batches_the_one_with_less_context_wins() -> None:
    long, short = decode("long", 4, used=600), decode("short", 4, used=100)
    assert chosen(prefill("p"), long, short)[1] == "short"


def test_waiting_for_room_costs_more_than_shipping() -> None:
    full = decode("full", 8, used=1000, held=4)
    assert chosen(prefill("p"), full, decode("free", 8))[1] == "free"
    # With this request both have 32 answers at a time: steps take as long.
    waits, last_place = decode("waits", 32, held=4), decode("last place", 31)
    assert chosen(prefill("p"), waits, last_place)[1] == "last place"


def test_the_decode_worker_that_holds_the_prefix_wins_among_equals() -> None:
    assert chosen(prefill("p"), decode("cold", 3), decode("warm", 3, held=3))[1] == "warm"


def test_a_predicted_miss_weighs_more_than_milliseconds_saved() -> None:
    # 900 ms for a prompt of 6,000 tokens; 811 ms where a tenth is held, after 300 ms of waiting.
    near, late = prefill("near"), prefill("late", 2000, held=37)
    assert predict(near, late, tokens=6000).prefill_ms.tolist() == pytest.approx([900, 1111.2])
    assert chosen(near, late, decode("d"), tokens=6000)[0] == "near"
    assert chosen(near, prefill("warm", 1200, held=37), decode("d"), tokens=6000)[0] == "warm"
    # 64 tokens of 1.4 ms more each, against a transfer of 145 ms.
    slow, fast = decode("slow", 20, used=190, held=900), decode("fast", 20, used=100)
    assert predict(slow, fast, tokens=14_400).tpot_ms.tolist() == pytest.approx([50.54, 49.1])
    assert chosen(prefill("p"), slow, fast, tokens=14_400)[1] == "fast"
    nearly = decode("nearly", 20, used=150, held=900)
    assert chosen(prefill("p"), nearly, fast, tokens=14_400)[1] == "nearly"


def test_a_hot_prefix_stays_with_its_holder_until_that_one_is_saturated() -> None:
    pending, taken = 0, []
    for _ in range(12):
        workers = (prefill("holder", pending, held=60), prefill("other"), decode("d"))
        taken.append(chosen(*workers, tokens=1000)[0])
        if taken[-1] == "other":
            break
        pending += 500
    # 960 of the 1,000 tokens take 136 ms, and weigh as much as 816 ms of waiting: 5,440 tokens.
    assert taken == ["holder"] * 11 + ["other"]


def test_a_hot_prefix_spreads_over_workers_that_learn_it() -> None:
    """Each prompt shares 60 of its 63 blocks; nobody finishes anything meanwhile."""
    pending, held = [0, 0, 0], [60, 0, 0]
    policy, took = make_policy(PolicyName.KV_AWARE, SLO), Counter[int]()
    for _ in range(90):
        columns = [mixed(str(i), pending=pending[i], held=held[i]) for i in range(3)]
        known = predict(*columns, tokens=1000)
        number = policy.choose(eligible(tuple(columns)), known, Random(0)).decode
        pending[number] += int(known.uncached[number])
        held[number] = 60
        took[number] += 1
    assert max(took.values()) - min(took.values()) <= 30
    assert min(took.values()) >= 15


def test_equal_workers_share_the_work() -> None:
    workers = (prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    policy, random = make_policy(PolicyName.KV_AWARE, SLO), Random(3)
    took = Counter(policy.choose(eligible(workers), predict(*workers), random) for _ in range(100))
    assert set(took) == {Choice(d, p) for p in (0, 1) for d in (2, 3)}
    assert min(took.values()) > 10


# Those to compare with


def test_least_loaded_looks_at_load_only() -> None:
    workers = (prefill("warm", 50, held=6), prefill("idle", 40), decode("busy", 3), decode("d", 2))
    assert chosen(*workers, policy=PolicyName.LEAST_LOADED) == ("idle", "d")
    assert chosen(mixed("warm", 2, held=6), mixed("idle"), policy=PolicyName.LEAST_LOADED) == (
        None,
        "idle",
    )


def test_prefix_affinity_looks_at_the_prefix_first() -> None:
    workers = (prefill("warm", 9000, held=6), prefill("idle", held=5), decode("d", 3), decode("e"))
    assert chosen(*workers, policy=PolicyName.PREFIX_AFFINITY) == ("warm", "e")
    holders = (mixed("busy", 9, held=6), mixed("less", 8, held=6), mixed("idle", held=5))
    assert chosen(*holders, policy=PolicyName.PREFIX_AFFINITY) == (None, "less")


def test_round_robin_takes_one_after_the_other() -> None:
    policy = make_policy(PolicyName.ROUND_ROBIN, SLO)
    workers = (prefill("p0"), decode("d0", 30), prefill("p1", 9000), decode("d1"), decode("d2"))
    taken = [chosen(*workers, policy=policy) for _ in range(4)]
    assert [p for p, _ in taken] == ["p0", "p1", "p0", "p1"]
    assert [d for _, d in taken] == ["d0", "d1", "d2", "d0"]


def test_round_robin_passes_over_who_is_gone() -> None:
    policy = make_policy(PolicyName.ROUND_ROBIN, SLO)
    workers = (mixed("a"), mixed("b"), mixed("c"))
    assert [chosen(*workers, policy=policy)[1] for _ in range(2)] == ["a", "b"]
    without = Eligible(None, np.array([0, 1]))
    assert policy.choose(without, predict(*workers), Random(0)) == Choice(0)


@pytest.mark.parametrize("kind", [prefill, mixed])
def test_random_takes_all_alike(kind: object) -> None:
    workers = (prefill("p0"), prefill("p1", 9000), decode("d0", 9), decode("d1"))
    if kind is mixed:
        workers = (mixed("m0"), mixed("m1", 9, pending=9000))
    policy, random = make_policy(PolicyName.RANDOM, SLO), Random(0)
    took = Counter(policy.choose(eligible(workers), predict(*workers), random) for _ in range(200))
    assert len(took) == (4 if kind is prefill else 2)
    assert min(took.values()) > 25


# Conditional disaggregation


def alone_or_not(*workers: Worker, tokens: int = 100, slo: SloTargets = SLO) -> str | None:
    """The prefill worker's name; None: the decode worker does it alone."""
    both = Eligibility(usable(*workers), Disaggregation.AUTO).of(PromptShape(1, 16))
    policy = make_policy(PolicyName.KV_AWARE, slo)
    choice = policy.choose(both, predict(*workers, tokens=tokens), Random(0))
    return None if choice.prefill is None else workers[choice.prefill].name


def test_a_short_suffix_is_computed_where_its_prefix_is() -> None:
    assert alone_or_not(prefill("p"), decode("d", 2, held=62), tokens=1000) is None
    assert alone_or_not(prefill("p", held=62), decode("d", 2), tokens=1000) == "p"


def test_a_long_prompt_is_handed_off_unless_everybody_waits_at_p() -> None:
    assert alone_or_not(prefill("p"), decode("d"), tokens=1000) == "p"
    assert alone_or_not(prefill("p", 3000), decode("d"), tokens=1000) is None


def test_the_steps_that_others_wait_for_count() -> None:
    queue = prefill("p", 1500)
    assert alone_or_not(queue, decode("d", 1), tokens=1000) is None
    assert alone_or_not(queue, decode("d", 4), tokens=1000) == "p"


def test_answers_that_would_miss_their_tpot_are_spared() -> None:
    busy = (prefill("p", 4000), decode("d", 2, used=600))
    assert alone_or_not(*busy, tokens=1000) is None
    # A step takes 23 ms, the prompt 140 ms more: 2 ms for each of 64 tokens.
    strict = SloTargets(ttft_s=1.0, tpot_s=0.0245)
    assert 0.0235 < predict(*busy, tokens=1000).tpot_ms[1] / 1000 < 0.0245
    assert alone_or_not(*busy, tokens=1000, slo=strict) == "p"
    nobody = (prefill("p", 4000), decode("d"))
    assert alone_or_not(*nobody, tokens=1000, slo=SloTargets(1.0, 0.001)) is None


def test_who_would_be_late_alone_is_not_asked() -> None:
    """All of the prompt is held there, but 9,000 tokens wait: 1.35 s."""
    assert alone_or_not(prefill("p"), decode("d", held=375, pending=9000), tokens=6000) == "p"
    patient = SloTargets(ttft_s=2.0, tpot_s=1.0)
    waits = (prefill("p"), decode("d", held=375, pending=9000))
    assert alone_or_not(*waits, tokens=6000, slo=patient) is None
