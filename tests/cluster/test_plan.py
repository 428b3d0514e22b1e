"""From a spec to what each worker is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.model_folder import ModelFolder
from cluster.plan import (
    RankPlace,
    ReplicaSettings,
    assign_by_node,
    check_shapes,
    list_slots,
    replica_need,
    replica_settings,
    resolve_dtype,
    thread_environment,
)
from core.config import make_spec
from core.errors import InvalidField
from core.peak_rates import DECLARED, PeakRates
from core.request import Role
from core.shards import ONE_RANK, ParallelShape
from core.step_budget import step_budget
from core.tls_files import TlsFiles
from core.worker_settings import WorkerSettings


def model(dtype: str = "bfloat16") -> ModelFolder:
    return ModelFolder(Path("/models/tiny"), 3, 4, 2, 16, dtype, max_positions=1000)


def pools(prefill: int, decode: int) -> dict:
    return {"pools": {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}}}


def shapes(prefill: tuple[int, int] = (1, 1), decode: tuple[int, int] = (1, 1)) -> dict:
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    split = {"prefill": prefill, "decode": decode}
    return {"pools": {pool: dict(zip(names, split[pool], strict=True)) for pool in split}}


def settings_of(spec, slot, *cores: tuple[int, ...]) -> ReplicaSettings:
    """Of a worker whose ranks are on nodes of their own, with these cores."""
    places = [RankPlace("n", f"10.0.0.{i + 1}", of_rank) for i, of_rank in enumerate(cores)]
    return replica_settings(spec, model(), slot, places, num_blocks=40)


def names(spec) -> list[str]:
    return [slot.name for slot in list_slots(spec)]


def test_two_pools_of_two() -> None:
    spec = make_spec(pools(2, 2))
    assert names(spec) == ["prefill-0", "prefill-1", "decode-0", "decode-1"]


def test_without_prefill_workers_all_are_mixed() -> None:
    slots = list_slots(make_spec(pools(0, 2)))
    assert [slot.name for slot in slots] == ["mixed-0", "mixed-1"]
    assert {slot.role for slot in slots} == {Role.MIXED}


def test_on_our_own_ray_there_is_always_room_for_one_more() -> None:
    spec = make_spec(pools(300, 300))
    assert sum(replica_need(spec, slot, True).total["CPU"] for slot in list_slots(spec)) <= 1.0


def test_on_a_cluster_of_others_a_rank_takes_a_whole_cpu_and_its_gpu() -> None:
    settings = {"engine": {"device": "cuda"}, "pools": shapes((3, 2), (1, 1))["pools"]}
    spec = make_spec(settings)
    need = replica_need(spec, list_slots(spec)[0], False)
    assert need.rank == {"CPU": 1.0, "GPU": 1.0}
    assert need.total == {"CPU": 6.0, "GPU": 6.0}


def test_configured_resources_are_taken_as_they_are() -> None:
    spec = make_spec({"pools": {"decode": {"resources": {"CPU": 3, "decoder": 1}}}})
    need = replica_need(spec, list_slots(spec)[1], True)
    assert (need.rank, need.shape) == ({"CPU": 3, "decoder": 1}, ONE_RANK)


@pytest.mark.parametrize(
    ("device", "wanted", "weights", "dtype"),
    [
        ("cpu", "auto", "bfloat16", "bfloat16"),
        ("cpu", "auto", "float16", "float32"),
        ("cuda", "auto", "float16", "float16"),
        ("cpu", "float32", "bfloat16", "float32"),
    ],
)
def test_auto_is_the_dtype_of_the_weights_where_it_is_any_good(device, wanted, weights, dtype):
    spec = make_spec({"engine": {"device": device, "dtype": wanted}})
    assert resolve_dtype(spec, model(weights)) == dtype


def test_workers_of_one_node_share_its_cores() -> None:
    slots = list_slots(make_spec(pools(1, 2)))
    nodes = dict(zip(slots, ["a", "a", "b"], strict=True))
    assigned = assign_by_node(nodes, {"a": [0, 1], "b": [4, 5]})
    assert [assigned[slot] for slot in slots] == [[(0,)], [(1,)], [(4, 5)]]


def test_ranks_share_the_cores_of_their_node_with_those_of_other_workers() -> None:
    prefill, decode = list_slots(make_spec(pools(1, 1)))
    assigned = assign_by_node({prefill: "aab", decode: "b"}, {"a": range(4), "b": [7, 8]})
    assert assigned == {prefill: [(0, 1), (2, 3), (7,)], decode: [(8,)]}


def test_a_worker_is_told_what_the_spec_says_of_its_pool() -> None:
    spec = make_spec({"pools": {"decode": {"max_num_seqs": 7}}, "max_model_len": 99})
    prefill, decode = list_slots(spec)
    told = settings_of(spec, decode, (2, 3)).leader
    assert (told.worker, told.role, told.max_num_seqs) == ("decode-0", Role.DECODE, 7)
    assert (told.cores, told.threads, told.dtype) == ((2, 3), 2, "bfloat16")
    assert (told.num_blocks, told.max_num_batched_tokens) == (40, 256)
    assert settings_of(spec, prefill, (0,)).leader.max_num_seqs == 32


def test_workers_are_told_how_blocks_may_move_and_how_long_leases_last() -> None:
    spec = make_spec({"kv": {"transport": "tcp", "lease": 9, "beat": 2}})
    told = [settings_of(spec, slot, (0,)).leader for slot in list_slots(spec)]
    assert [(t.transport, t.lease_s, t.beat_s) for t in told] == [("tcp", 9.0, 2.0)] * 2


def test_workers_are_told_where_their_certificates_are() -> None:
    files = {"ca": "/ca.pem", "cert": "/worker.pem", "key": "/worker.key"}
    for told, tls in ((TlsFiles(**files), files), (None, None)):
        spec = make_spec({"tls": tls})
        assert {settings_of(spec, slot, (0,)).leader.tls for slot in list_slots(spec)} == {told}


def test_workers_are_told_whether_clients_read_from_them_and_what_these_are_shown() -> None:
    def told(settings: dict[str, Any]) -> WorkerSettings:
        spec = make_spec({"tls": {"doors": {"cert": "/d.pem", "key": "/d.key"}}} | settings)
        return settings_of(spec, list_slots(spec)[0], (0,)).leader

    assert (told({}).token_stream_port, told({}).doors) == (None, None)
    open_ = told({"token_streams": {"enabled": True, "port": 50061}})
    assert open_.token_stream_port == 50061
    assert open_.doors is not None
    assert (open_.doors.cert, open_.doors.key) == ("/d.pem", "/d.key")


def test_workers_are_told_where_to_tell_metrics_and_what_their_device_can_do() -> None:
    declared = {"peak": {"flops": 1e15, "memory_bandwidth": 2e12}}
    spec = make_spec({"metrics": {"worker_port": 9400}, "engine": declared})
    told = settings_of(spec, list_slots(spec)[0], (0,)).leader
    assert told.metrics_port == 9400
    assert told.peak == PeakRates(1e15, 2e12, DECLARED)
    spec = make_spec()
    assert settings_of(spec, list_slots(spec)[0], (0,)).leader.peak is None


def test_every_rank_is_told_its_own_place_and_the_settings_of_its_worker() -> None:
    spec = make_spec(shapes((1, 1), (1, 3)))
    decode = list_slots(spec)[1]
    told = settings_of(spec, decode, (0,), (1, 2), (3,))
    assert told.leader.shape == ParallelShape(1, 3)
    assert [(rank.rank, rank.cores, rank.threads) for rank in told.others] == [
        (1, (1, 2), 2),
        (2, (3,), 1),
    ]
    assert {rank.host for rank in told.others} == {"10.0.0.2", "10.0.0.3"}
    assert {rank.worker for rank in told.others} == {told.leader}


@pytest.mark.parametrize(
    ("split", "field", "valid"),
    [
        ({"decode": (2, 1)}, "pools.decode.tensor_parallel_size = 2", "1, 3, 9"),
        ({"prefill": (6, 1)}, "pools.prefill.tensor_parallel_size = 6", "1, 3, 9"),
        ({"decode": (1, 31)}, "pools.decode.pipeline_parallel_size = 31", "1 to 30 stages"),
    ],
)
def test_a_shape_that_the_model_can_not_be_split_into_is_refused(split, field, valid) -> None:
    smollm2 = ModelFolder(Path("/models/smollm2"), 30, 9, 3, 64, "bfloat16", 8192)
    check_shapes(make_spec(shapes((9, 5), (3, 30))), smollm2)
    with pytest.raises(InvalidField, match=valid) as caught:
        check_shapes(make_spec(shapes(**split)), smollm2)
    assert field in caught.value.message


def test_threads_can_be_set_and_binding_turned_off() -> None:
    spec = make_spec({"engine": {"threads": 3, "affinity": "none"}})
    told = settings_of(spec, list_slots(spec)[0], (0,)).leader
    assert (told.cores, told.threads) == ((), 3)


def test_math_libraries_are_told_how_many_threads_to_start() -> None:
    assert thread_environment(2)["OMP_NUM_THREADS"] == "2"


def test_kernels_can_be_turned_off_on_every_rank() -> None:
    spec = make_spec({"engine": {"kernels": "torch"}})
    assert settings_of(spec, list_slots(spec)[0], (0,)).leader.kernels == "torch"


def test_the_token_budget_of_a_step_suits_the_device_and_holds_every_sequence() -> None:
    for settings, budget in [
        ({}, 256),
        ({"engine": {"device": "cuda"}}, 2048),
        ({"pools": {"decode": {"max_num_seqs": 300}}}, 300),
        ({"pools": {"decode": {"max_num_batched_tokens": 64}}}, 64),
    ]:
        spec = make_spec(settings)
        assert step_budget(spec, "decode") == budget


def test_a_budget_below_the_number_of_sequences_is_refused_by_name() -> None:
    spec = make_spec({"pools": {"decode": {"max_num_batched_tokens": 8}}})
    with pytest.raises(
        InvalidField, match=r"pools\.decode\.max_num_batched_tokens = 8.*max_num_seqs"
    ):
        step_budget(spec, "decode")
