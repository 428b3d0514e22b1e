"""A tenant that floods the cluster, and one that stays within its share beside it. In the
simulator, with the production door."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_clusters import STEP, cluster, clusters, trace, traces, workers

from amounts import examples
from core.latency_profile import FEMTOSECONDS, StepWork, chunk_pairs
from core.request import Role
from core.tenants import DoorLimits, Tenant, TenantLimits
from router.access_rules import AccessRules
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate

CHUNK = 64
LONGEST = 120
SECONDS = 8.0
# What `core.door_limits` makes of such workers, but for a shorter queue.
DOOR = DoorLimits(128, prefill_backlog=CHUNK, decode_backlog=0)
QUIET, LOUD = "quiet", "loud"
# Requests per second: a fifth of what the clusters can serve, half of it, and several times it.
WITHIN, SHARE, FLOOD = 30.0, {"split": 67.0, "mixed": 100.0}, 300.0
CLUSTERS = {
    "split": cluster(
        workers(Role.PREFILL, 1, num_blocks=600), workers(Role.DECODE, 2, num_blocks=600)
    ),
    "mixed": cluster(workers(Role.MIXED, 2, num_blocks=600)),
}


def with_rules(model: ClusterModel, *tenants: Tenant, door: DoorLimits = DOOR) -> ClusterModel:
    return replace(model, access=AccessRules({t.name: t for t in tenants}, door=door))


def load(rates: dict[str, float], seconds: float = SECONDS) -> RequestTrace:
    """Poisson arrivals of each tenant: prompts of 20 to 120 tokens, answers of 5 to 20. A tenant's
    requests are the same ones whatever the others send."""
    requests: list[tuple[float, int, int, str]] = []
    for name, rate in rates.items():
        own = np.random.default_rng([0, len(name)])
        at = own.exponential(1 / rate, int(2 * rate * seconds)).cumsum()
        for moment in at[at < seconds]:
            lengths = int(own.integers(20, LONGEST + 1)), int(own.integers(5, 20))
            requests.append((float(moment), *lengths, name))
    requests.sort(key=lambda request: request[0])
    plain = trace(*((at, prompt, answer) for at, prompt, answer, _ in requests))
    return replace(plain, tenants=[name for *_, name in requests])


def of(requests: RequestTrace, tenant: str) -> np.ndarray:
    return np.array([name == tenant for name in requests.tenants])


def p99_ttft(result: SimulationResult, requests: RequestTrace) -> float:
    """Of the quiet tenant; endless if one of its requests got nothing."""
    ttft = result.ttft_s[of(requests, QUIET)]
    return float(np.percentile(np.nan_to_num(ttft, nan=np.inf), 99))


def chunk_s() -> float:
    """The longest one of these prompts: the last of 120 tokens."""
    rest = LONGEST - CHUNK
    work = StepWork(rest, 1, chunk_pairs(CHUNK, rest), 0, 0)
    return STEP.time(work) / FEMTOSECONDS


@pytest.mark.thorough
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_flood_moves_another_tenants_p99_by_less_than_a_tenth_and_a_chunk(name: str) -> None:
    model = with_rules(CLUSTERS[name], Tenant(QUIET), Tenant(LOUD))
    p99 = []
    for loud in (SHARE[name], FLOOD):
        requests = load({QUIET: WITHIN, LOUD: loud})
        result = simulate(requests, model)
        assert not any(of(requests, QUIET)[index] for index in result.failures)
        p99.append(p99_ttft(result, requests))
    assert p99[1] < 1.1 * p99[0] + chunk_s()


@pytest.mark.thorough
def test_as_one_tenant_they_would_all_wait_in_the_same_queue() -> None:
    """What the test above would not let pass."""
    requests = load({QUIET: WITHIN, LOUD: FLOOD}, seconds=3.0)
    together = with_rules(CLUSTERS["mixed"], door=DoorLimits(128))
    result = simulate(replace(requests, tenants=()), together)
    refused = np.isnan(result.ttft_s[of(requests, QUIET)])
    assert refused.mean() > 0.1
    waited = result.ttft_s[of(requests, QUIET)][~refused]
    assert np.median(waited) > 10 * chunk_s()


@pytest.mark.thorough
def test_two_floods_get_tokens_by_their_weights() -> None:
    heavy, light = Tenant("heavy", weight=3.0), Tenant("light")
    requests = load({"heavy": FLOOD, "light": FLOOD}, seconds=4.0)
    result = simulate(requests, with_rules(CLUSTERS["mixed"], heavy, light))
    started = result.first_token_s < 4.0
    cost = requests.prompt_tokens + 2 * requests.output_tokens
    share = {name: cost[started & of(requests, name)].sum() for name in ("heavy", "light")}
    assert share["heavy"] / share["light"] == pytest.approx(3.0, rel=0.15)


def test_a_lower_class_gets_what_the_first_one_leaves() -> None:
    first, later = Tenant("first"), Tenant("later", priority=5)
    requests = load({"first": FLOOD, "later": WITHIN}, seconds=2.0)
    result = simulate(requests, with_rules(CLUSTERS["mixed"], first, later))
    in_time = result.first_token_s < 2.0
    assert (in_time & of(requests, "first")).sum() > 100
    assert (in_time & of(requests, "later")).sum() < 10


def same_in_runs(requests: RequestTrace, model: ClusterModel) -> SimulationResult:
    """What comes of it, whether steps are taken in runs or one by one."""
    one, other = simulate(requests, model), simulate(requests, model, step_by_step=True)
    assert one.failures == other.failures
    np.testing.assert_array_equal(one.first_token_s, other.first_token_s)
    np.testing.assert_array_equal(one.last_token_s, other.last_token_s)
    return one


def test_a_prompt_that_waits_behind_a_run_of_steps_makes_room_in_the_middle_of_it() -> None:
    """As soon as a step's report is taken to include it, though nobody tells of single steps."""
    requests = trace(*((0.0, 1, answer) for answer in (24, *[1] * 13, 22, 1)))
    requests = replace(requests, tenants=["a"] * 14 + ["b"] * 2)
    worker = workers(Role.MIXED, 1, num_blocks=12, max_num_seqs=2, budget=6)
    tenants = Tenant("a", limits=TenantLimits(concurrent_sequences=2)), Tenant("b", 2.0)
    model = with_rules(
        cluster(worker, message_s=0.0, request_s=0.0), *tenants, door=DoorLimits(10, 1, 2)
    )
    assert np.isfinite(same_in_runs(requests, model).first_token_s[1])


@settings(max_examples=examples(60))
@given(traces(), clusters(), st.data())
def test_with_a_door_runs_of_steps_change_nothing_either(
    requests: RequestTrace, model: ClusterModel, data: st.DataObject
) -> None:
    names = data.draw(
        st.lists(st.sampled_from("abc"), min_size=len(requests), max_size=len(requests))
    )
    requests = replace(requests, tenants=names)
    door = DoorLimits(
        data.draw(st.integers(1, 20)), data.draw(st.integers(1, 100)), data.draw(st.integers(0, 2))
    )
    model = with_rules(
        model, Tenant("a", limits=TenantLimits(concurrent_sequences=2)), Tenant("b", 2.0), door=door
    )
    one = same_in_runs(requests, model)
    ended = np.isfinite(one.last_token_s).sum() + len(one.failures)
    assert ended == len(requests)
