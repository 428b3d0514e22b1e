"""Workers that share a host or a core: who they are, and how they slow each other down."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_clusters import (
    STEP,
    check_nothing_is_left,
    cluster,
    clusters,
    trace,
    traces,
    workers,
)

from cluster.plan import assign_by_node, list_slots
from core.config import ClusterSpec, make_spec
from core.errors import InvalidField
from core.latency_profile import (
    FEMTOSECONDS,
    EngineProfile,
    Interference,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    StepWork,
    TransferModel,
    TransferProfile,
)
from core.request import Role
from core.shards import ONE_RANK
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, HostShare, WorkerModel
from tuner.simulate.core_shares import place_workers
from tuner.simulate.from_spec import PoolProfiles, model_cluster
from tuner.simulate.requests import RequestTrace
from tuner.simulate.shared_host import SharedHost
from tuner.simulate.simulator import Simulation, simulate


def steps(alone: int, times: int = 1) -> StepModel:
    return StepModel(RowCurve(((0, alone * times), (1, alone * times))), 0, 0, 0)


def engine(threads: int, step: int, share: float = 1.0, company: int = 0) -> EngineProfile:
    return EngineProfile(ONE_RANK, threads, share, steps(step), 10_000, company=company)


# Its steps take 10 alone, 11 beside others, 30 on a shared core, 6 on two cores.
PROFILE = LatencyProfile(
    origin=Origin.MEASURED,
    hardware="two cores",
    model="any",
    model_hash="",
    dtype="float32",
    created="2026-11-21",
    max_positions=4096,
    weight_bytes=1,
    kv_bytes_per_token=1,
    message_s=0.0,
    request_s=0.0,
    engines=(
        engine(1, 10),
        engine(1, 11, company=1),
        engine(1, 30, 0.5, company=2),
        engine(2, 6),
    ),
    transfers=(TransferProfile("shm", ONE_RANK, ONE_RANK, TransferModel(1, 1)),),
    cores=2,
)
PROFILES = PoolProfiles(PROFILE, PROFILE)


def spec_of(prefill: int, decode: int, threads: int | None = None) -> ClusterSpec:
    return make_spec(
        {
            "engine": {"threads": threads},
            "pools": {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}},
        }
    )


@given(st.integers(0, 4), st.integers(1, 4), st.sampled_from([1, 2]), st.integers(1, 12))
def test_workers_are_placed_as_serve_binds_them(
    prefill: int, decode: int, tensor: int, cores: int
) -> None:
    spec = make_spec(
        {
            "pools": {
                "prefill": {"replicas": prefill, "tensor_parallel_size": tensor},
                "decode": {"replicas": decode},
            }
        }
    )
    slots = list_slots(spec)
    nodes = {slot: ["here"] * spec.pools.of(slot.pool).shape.num_ranks for slot in slots}
    bound = assign_by_node(nodes, {"here": range(cores)})
    places = place_workers(spec, cores)
    assert [list(place.cores) for place in places] == [bound[slot] for slot in slots]
    assert [place.pool for place in places] == [slot.pool for slot in slots]
    for place in places:
        assert place.crowd + place.apart == len(places) - 1


Times = tuple[int | None, int, int]


def engines_of(model: ClusterModel) -> list[tuple[Role, int, int, Times | None]]:
    """Role, number, a step's time alone; the core, times beside others and crowded of those that
    are not alone."""
    return [
        (worker.role, worker.count, _time(worker.engine.step), _times(worker.share))
        for worker in model.workers
    ]


def _times(share: HostShare | None) -> Times | None:
    return share and (share.core, _time(share.beside), _time(share.crowded))


def _time(step: StepModel) -> int:
    return step.rows.at(0)


def test_two_prefill_workers_and_a_decode_worker_on_two_cores() -> None:
    """The decode worker comes last, and shares the first one's core."""
    assert engines_of(model_cluster(spec_of(2, 1), PROFILES, host_cores=2)) == [
        (Role.PREFILL, 1, 10, (0, 11, 30)),
        (Role.PREFILL, 1, 10, (None, 11, 11)),
        (Role.DECODE, 1, 10, (0, 11, 30)),
    ]


def test_a_prefill_worker_and_two_decode_workers_on_two_cores() -> None:
    assert engines_of(model_cluster(spec_of(1, 2), PROFILES, host_cores=2)) == [
        (Role.PREFILL, 1, 10, (0, 11, 30)),
        (Role.DECODE, 1, 10, (None, 11, 11)),
        (Role.DECODE, 1, 10, (0, 11, 30)),
    ]


def test_colocated_workers_use_the_threads_of_their_cores() -> None:
    def of(decode: int, threads: int | None) -> list[object]:
        return list(engines_of(model_cluster(spec_of(0, decode, threads), PROFILES, host_cores=2)))

    assert of(1, None) == [(Role.MIXED, 1, 6, None)]
    assert of(1, 1) == [(Role.MIXED, 1, 10, None)]
    assert of(2, None) == [(Role.MIXED, 2, 10, (None, 11, 11))]


def test_without_a_host_each_worker_has_cores_of_its_own() -> None:
    assert engines_of(model_cluster(spec_of(2, 1, 1), PROFILES)) == [
        (Role.PREFILL, 2, 11, None),
        (Role.DECODE, 1, 11, None),
    ]


def test_a_share_that_was_not_profiled_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"core share 0\.5"):
        model_cluster(spec_of(2, 1, 2), PROFILES, host_cores=2)


WORK = StepWork(1, 1, 0, 1, 1)


def ends(starts: list[tuple[int, int, int | None, int]]) -> dict[int, int]:
    """When each of (start, worker, core, time alone) steps ends. Beside others it takes a tenth
    longer, crowded twice as long."""
    agenda = Agenda()
    host = SharedHost(agenda)
    ended: dict[int, int] = {}

    def start(told: tuple[int, int | None, int]) -> None:
        worker, core, alone = told
        share = HostShare(core, steps(alone * 11 // 10), steps(alone, 2))
        host.start(worker, share, steps(alone), WORK, lambda _: ended.update({worker: agenda.now}))

    for at, *told in starts:
        agenda.at(at, start, told)
    while not agenda.is_over:
        agenda.happen()
    return ended


def test_a_step_alone_takes_its_time() -> None:
    assert ends([(5, 0, 0, 100)]) == {0: 105}
    assert ends([(5, 0, None, 100)]) == {0: 105}


def test_two_steps_on_one_core_slow_each_other_down_while_both_compute() -> None:
    """The second half of the first step and the first half of the second one take 100."""
    assert ends([(0, 0, 0, 100), (50, 1, 0, 100)]) == {0: 150, 1: 200}


def test_two_steps_on_different_cores_slow_each_other_down_a_little() -> None:
    assert ends([(0, 0, None, 100), (0, 1, None, 100)]) == pytest.approx({0: 110, 1: 110}, abs=1)
    assert ends([(0, 0, None, 100), (50, 1, 1, 100)]) == pytest.approx({0: 105, 1: 155}, abs=1)


def test_three_steps_share_a_core_in_three() -> None:
    assert ends([(0, 0, 0, 100), (0, 1, 0, 100), (0, 2, 0, 100)]) == pytest.approx(
        {0: 300, 1: 300, 2: 300}, abs=3
    )


# Beside decoding a decode step takes 1.4 times as long, beside prompts 1.1 times, and so on.
MEASURED = Interference(1.4, 1.1, 1.2, 1.3)
PROMPT = StepWork(64, 1, 64 * 65 // 2, 0, 0)


def served_ends(started: list[tuple[StepWork, HostShare]]) -> list[int]:
    """When each of some steps that begin together, and take 1,000 alone, ends."""
    agenda = Agenda()
    host = SharedHost(agenda)
    ended: dict[int, int] = {}
    for worker, (work, share) in enumerate(started):
        note = partial(ended.__setitem__, worker)
        host.start(worker, share, steps(1000), work, lambda _, note=note: note(agenda.now))
    while not agenda.is_over:
        agenda.happen()
    return [ended[worker] for worker in range(len(started))]


def measured_share(core: int | None, part: float = 1.0) -> HostShare:
    return HostShare(core, steps(5000), steps(2000), MEASURED, part)


def test_how_much_two_slow_each_other_down_depends_on_what_both_do() -> None:
    apart = measured_share(None)
    assert served_ends([(WORK, apart), (WORK, apart)]) == pytest.approx([1400, 1400], abs=2)
    assert served_ends([(PROMPT, apart), (PROMPT, apart)]) == pytest.approx([1300, 1300], abs=2)
    # When the decode step has ended, the rest of the prompt is alone.
    decode, prompt = served_ends([(WORK, apart), (PROMPT, apart)])
    assert decode == pytest.approx(1100, abs=2)
    assert prompt == pytest.approx(1100 + (1 - 1100 / 1200) * 1000, abs=2)


def test_of_many_neighbours_each_adds_its_part() -> None:
    third = measured_share(None, part=1 / 3)
    assert served_ends([(WORK, third)] * 4) == pytest.approx([1400] * 4, abs=4)
    assert served_ends([(WORK, third)] * 2) == pytest.approx([1133] * 2, abs=4)


def test_two_neighbours_on_one_core_count_as_one() -> None:
    alone_on_core, crowded = measured_share(1), measured_share(0)
    ends = served_ends([(WORK, alone_on_core), (WORK, crowded), (WORK, crowded)])
    assert ends == pytest.approx([1400, 2000, 2000], abs=4)


def test_a_profile_that_knows_it_says_how_neighbours_disturb() -> None:
    profile = replace(PROFILE, interference=MEASURED)
    model = model_cluster(spec_of(0, 2), PoolProfiles(profile, profile), host_cores=2)
    share = model.workers[0].share
    assert share is not None
    assert (share.interference, share.part) == (MEASURED, 1.0)
    four = replace(profile, cores=4)
    model = model_cluster(spec_of(0, 2, 1), PoolProfiles(four, four), host_cores=4)
    share = model.workers[0].share
    assert share is not None
    assert share.part == pytest.approx(1 / 3)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.sampled_from([None, 0, 1]), st.integers(10, 300)),
        min_size=1,
        max_size=5,
    )
)
def test_nobody_is_faster_than_alone_or_slower_than_in_the_fullest_crowd(
    drawn: list[tuple[int, int | None, int]],
) -> None:
    started = [(at, i, core, alone) for i, (at, core, alone) in enumerate(drawn)]
    ended = ends(started)
    assert set(ended) == set(range(len(drawn)))
    for at, worker, _, alone in started:
        slack = 2 * len(started)
        assert at + alone - 1 <= ended[worker] <= at + alone * max(2, len(started)) + slack


def on_one_core(model: WorkerModel, times: int) -> WorkerModel:
    crowded = StepModel(
        RowCurve(tuple((rows, times * at) for rows, at in STEP.rows.points)),
        times * STEP.per_sampled,
        times * STEP.per_prefill_pair,
        times * STEP.per_decode_context,
    )
    return replace(model, share=HostShare(0, STEP, crowded))


def test_a_prompt_beside_decoding_on_the_same_core_takes_twice_as_long() -> None:
    """The second prompt (of 64 tokens, one chunk) comes while the first answer is decoded."""
    pair = workers(Role.PREFILL, 1), workers(Role.DECODE, 1)
    shared = tuple(on_one_core(model, 2) for model in pair)
    requests = trace((0.0, 10, 150), (0.1, 64, 1))
    apart = simulate(requests, cluster(*pair))
    crowded = simulate(requests, cluster(*shared))
    prompt_s = STEP.time(StepWork(64, 1, 64 * 65 // 2, 0, 0)) / FEMTOSECONDS
    assert crowded.ttft_s[0] == apart.ttft_s[0]
    slower = crowded.ttft_s[1] - apart.ttft_s[1]
    # Steps of decoding are short, with hardly any pause between them.
    assert 0.9 * prompt_s < slower <= prompt_s * 1.001
    assert crowded.last_token_s[0] > apart.last_token_s[0]
    busy = [worker.busy_s for worker in crowded.workers]
    assert sum(busy) > sum(worker.busy_s for worker in apart.workers)


@given(traces(), clusters())
def test_a_shared_host_on_which_nobody_is_slower_changes_nothing(
    requests: RequestTrace, model: ClusterModel
) -> None:
    if any(worker.engine.shape.pipeline > 1 for worker in model.workers):
        return
    share = HostShare(None, STEP, STEP)
    shared = replace(model, workers=tuple(replace(w, share=share) for w in model.workers))
    one, other = simulate(requests, model), simulate(requests, shared)
    for name in ("first_token_s", "last_token_s"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9, nan_ok=True)
    assert one.failures == other.failures
    assert [w.busy_s for w in one.workers] == pytest.approx([w.busy_s for w in other.workers])


@given(traces())
def test_all_requests_are_answered_on_a_crowded_core(requests: RequestTrace) -> None:
    models = [
        on_one_core(workers(Role.PREFILL, 2), 2),
        on_one_core(workers(Role.DECODE, 1), 2),
    ]
    simulation = Simulation(requests, cluster(*models))
    simulation.run()
    check_nothing_is_left(simulation)
    result = simulation.result()
    assert not result.failures
    for worker in result.workers:
        assert worker.busy_s <= result.ended_s
