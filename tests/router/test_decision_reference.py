"""The columns of a decision against the plain sums, for any workers and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_costs import PlainCosts
from predicted_workers import BLOCK, COSTS, ENGINE, MS, STEP, Worker, predict, usable

from core.request import Role
from router.placement import Disaggregation
from router.routing.candidates import PromptShape
from router.routing.choosing import Eligibility
from router.routing.policies import kv_aware
from router.slo import SloTargets

# No sum of round times hits them by accident.
SLO = SloTargets(ttft_s=1.00037, tpot_s=0.04913)
SLOWER = replace(ENGINE, step=replace(STEP, per_prefill_pair=MS // 700), max_num_batched_tokens=120)
CLUSTER = replace(COSTS, prefill=SLOWER)

Best = set[tuple[int | None, int]]


@st.composite
def some_workers(draw: st.DrawFn, roles: list[Role], tokens: int) -> list[Worker]:
    """Copies of one or two of them, in which a few numbers are others: near in cost, or equal."""
    blocks = -(-tokens // BLOCK)
    numbers = {
        "busy": st.sampled_from([0, 1, 3, 20, 31, 32, 50]),
        "pending": st.sampled_from([100, 350, 2000, 9000]),
        "late": st.sampled_from([0, 60, 5000]),
        "used": st.sampled_from([0, 60, 500, 990, 999]),
        "held": st.sampled_from([0, 0, blocks // 2, blocks - 1, tokens // BLOCK]),
    }
    first = {name: draw(values) for name, values in numbers.items()}
    workers = []
    for number in range(draw(st.integers(1, 7))):
        role = draw(st.sampled_from(roles))
        others = draw(st.sets(st.sampled_from(sorted(numbers)), max_size=2))
        own = first | {name: draw(numbers[name]) for name in sorted(others)}
        own["late"] = min(own["late"], own["pending"])
        places = 2**31 if role is Role.PREFILL else 32
        workers.append(Worker(f"w{number}", role, places=places, **own))
    return workers


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_decision_is_that_of_the_plain_sums(data: st.DataObject) -> None:
    tokens = data.draw(st.sampled_from([1, 16, 100, 250, 1000, 6000]))
    answers = data.draw(st.sampled_from([1, 1, 1, 4]))
    mode = data.draw(st.sampled_from([Disaggregation.AUTO, Disaggregation.PREFER]))
    roles = data.draw(st.sampled_from([[Role.MIXED], [Role.PREFILL, Role.DECODE], list(Role)]))
    workers = data.draw(some_workers(roles, tokens))
    if not any(worker.role.decodes for worker in workers):
        workers.append(Worker("d", Role.DECODE))
    context = data.draw(st.sampled_from([0.0, 800.0]))
    predictions = predict(
        *workers, tokens=tokens, costs=CLUSTER, context=context, answers=answers, ttft_s=SLO.ttft_s
    )
    eligible = Eligibility(usable(*workers), mode).of(PromptShape(tokens, BLOCK), answers)
    # Few are looked at one by one, many together.
    few = data.draw(st.sampled_from([0, 12]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_aware, "_FEW", few)
        chosen = kv_aware.KvAware(SLO).choose(eligible, predictions, Random(0))
    plain = PlainCosts(CLUSTER, SLO, tokens, answers, context)
    assert (chosen.prefill, chosen.decode) in best(plain, workers, mode)
    for number, worker in enumerate(workers):
        assert predictions.prefill_ms[number] == pytest.approx(plain.prefill(worker))
        assert predictions.prefill_of(number) == pytest.approx(plain.prefill(worker))
        if worker.role.decodes:
            assert predictions.room_ms[number] == pytest.approx(plain.room(worker))
            assert predictions.has_room(number) == (plain.room(worker) == 0)
            assert predictions.tpot_ms[number] == pytest.approx(plain.tpot(worker))
            assert predictions.tpot_of(number) == predictions.tpot_ms[number]
            assert predictions.local_ms[number] == pytest.approx(plain.local(worker))
            assert predictions.alone(number).first_ms == pytest.approx(plain.local(worker))


def best(plain: PlainCosts, workers: list[Worker], mode: Disaggregation) -> Best:
    decoders = [n for n, worker in enumerate(workers) if worker.role.decodes]
    receivers = [n for n, worker in enumerate(workers) if worker.role.takes_handoffs]
    prefillers = [n for n, worker in enumerate(workers) if worker.role.prefills_for_others]
    if not (prefillers and receivers):
        return {(None, n) for n in least(plain.alone, workers, decoders)}
    pairs = {
        (p, d)
        for p in least(plain.first_at_prefill, workers, prefillers)
        for d in least(plain.taking, workers, receivers)
    }
    if mode is not Disaggregation.AUTO:
        return set(pairs)
    able = [n for n in decoders if plain.spares_answers(workers[n])]
    alone = least(plain.alone_beside_others, workers, able)
    # Equal ones may be shipped a different part of the prompt.
    return {choice for p, d in pairs for choice in against(plain, workers, alone, p, d)}


def against(
    plain: PlainCosts, workers: Sequence[Worker], alone: Sequence[int], prefill: int, decode: int
) -> Best:
    """The pair, or who costs less alone."""
    limit = plain.pair(workers[prefill], workers[decode])
    if alone and plain.alone_beside_others(workers[alone[0]]) < limit:
        return {(None, n) for n in alone}
    return {(prefill, decode)}


def least(
    cost: Callable[[Worker], float], workers: Sequence[Worker], among: Sequence[int]
) -> list[int]:
    """Of ``among``, those of the least cost, as exactly as floats tell."""
    costs = {n: cost(workers[n]) for n in among}
    limit = min(costs.values(), default=0.0) * (1 + 1e-9) + 1e-9
    return [n for n, value in costs.items() if value <= limit]
