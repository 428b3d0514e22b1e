"""From a spec to what each worker is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.model_folder import ModelFolder
from cluster.plan import (
    DEFAULT_KV_BYTES,
    PROCESS_BYTES,
    assign_by_node,
    list_slots,
    plan_max_model_len,
    plan_num_blocks,
    plan_step_tokens,
    resolve_dtype,
    resources_of,
    thread_environment,
    worker_memory,
    worker_settings,
)
from core.config import make_spec
from core.errors import InvalidField
from core.request import Role

GIB = 2**30
# 3 layers × K and V × 2 heads × 16 tokens × 16 dims × 2 bytes.
BLOCK_BYTES = 3 * 2 * 2 * 16 * 16 * 2


def model(dtype: str = "bfloat16") -> ModelFolder:
    return ModelFolder(Path("/models/tiny"), 3, 2, 16, dtype, max_positions=1000)


def pools(prefill: int, decode: int) -> dict:
    return {"pools": {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}}}


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
    assert sum(resources_of(spec, slot, True)["CPU"] for slot in list_slots(spec)) <= 1.0


def test_on_a_cluster_of_others_a_replica_takes_a_whole_cpu_and_its_gpu() -> None:
    spec = make_spec({"engine": {"device": "cuda"}})
    assert resources_of(spec, list_slots(spec)[0], False) == {"CPU": 1.0, "GPU": 1.0}


def test_configured_resources_are_taken_as_they_are() -> None:
    spec = make_spec({"pools": {"decode": {"resources": {"CPU": 3, "decoder": 1}}}})
    assert resources_of(spec, list_slots(spec)[1], True) == {"CPU": 3, "decoder": 1}


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


def test_the_kv_pool_has_a_default_size() -> None:
    blocks = plan_num_blocks(make_spec(), model(), free_memory=64 * GIB)
    assert blocks == DEFAULT_KV_BYTES // BLOCK_BYTES


def test_the_default_leaves_half_of_a_small_memory_alone() -> None:
    blocks = plan_num_blocks(make_spec(pools(1, 1)), model(), free_memory=GIB // 4)
    assert blocks == GIB // 16 // BLOCK_BYTES


def test_the_kv_pool_can_be_given_in_bytes_or_in_blocks() -> None:
    in_bytes = make_spec({"kv": {"memory": f"{10 * BLOCK_BYTES + 1}"}})
    assert plan_num_blocks(in_bytes, model(), GIB) == 10
    assert plan_num_blocks(make_spec({"kv": {"num_blocks": 40}}), model(), GIB) == 40


@pytest.mark.parametrize(
    ("memory", "words"), [("600MiB", "2 workers need that much each"), ("1KiB", "one block takes")]
)
def test_an_impossible_kv_memory_is_refused(memory: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        plan_num_blocks(make_spec({"kv": {"memory": memory}}), model(), GIB)


@pytest.mark.parametrize(
    ("wanted", "num_blocks", "length"), [(None, 40, 640), (None, 1000, 1000), (500, 40, 500)]
)
def test_sequences_end_where_the_model_or_the_pool_does(wanted, num_blocks, length) -> None:
    spec = make_spec({"max_model_len": wanted})
    assert plan_max_model_len(spec, model(), num_blocks) == length


@pytest.mark.parametrize(
    ("wanted", "words"), [(1001, "ends at 1000 tokens"), (641, "holds 640 tokens")]
)
def test_a_longer_sequence_than_that_is_refused(wanted: int, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        plan_max_model_len(make_spec({"max_model_len": wanted}), model(), 40)


def test_a_worker_takes_its_weights_its_kv_and_its_process(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    stored = replace(model(), path=tmp_path)
    assert worker_memory(make_spec(), stored, 10) == PROCESS_BYTES + 1000 + 10 * BLOCK_BYTES
    wide = make_spec({"engine": {"dtype": "float32"}})
    assert worker_memory(wide, stored, 10) == PROCESS_BYTES + 2000 + 20 * BLOCK_BYTES


def test_workers_of_one_node_share_its_cores() -> None:
    slots = list_slots(make_spec(pools(1, 2)))
    nodes = dict(zip(slots, ["a", "a", "b"], strict=True))
    assigned = assign_by_node(nodes, {"a": [0, 1], "b": [4, 5]})
    assert [assigned[slot] for slot in slots] == [(0,), (1,), (4, 5)]


def test_a_worker_is_told_what_the_spec_says_of_its_pool() -> None:
    spec = make_spec({"pools": {"decode": {"max_num_seqs": 7}}, "max_model_len": 99})
    prefill, decode = list_slots(spec)
    told = worker_settings(spec, model(), decode, (2, 3), num_blocks=40)
    assert (told.worker, told.role, told.max_num_seqs) == ("decode-0", Role.DECODE, 7)
    assert (told.cores, told.threads, told.dtype) == ((2, 3), 2, "bfloat16")
    assert (told.num_blocks, told.max_num_batched_tokens) == (40, 256)
    assert worker_settings(spec, model(), prefill, (0,), 40).max_num_seqs == 32


def test_workers_are_told_how_blocks_may_move() -> None:
    spec = make_spec({"kv": {"transport": "tcp"}})
    told = [worker_settings(spec, model(), slot, (0,), 40) for slot in list_slots(spec)]
    assert [settings.transport for settings in told] == ["tcp", "tcp"]


def test_threads_can_be_set_and_binding_turned_off() -> None:
    spec = make_spec({"engine": {"threads": 3, "affinity": "none"}})
    told = worker_settings(spec, model(), list_slots(spec)[0], (0,), 40)
    assert (told.cores, told.threads) == ((), 3)


def test_math_libraries_are_told_how_many_threads_to_start() -> None:
    assert thread_environment(2)["OMP_NUM_THREADS"] == "2"


def test_the_token_budget_of_a_step_suits_the_device_and_holds_every_sequence() -> None:
    for settings, budget in [
        ({}, 256),
        ({"engine": {"device": "cuda"}}, 2048),
        ({"pools": {"decode": {"max_num_seqs": 300}}}, 300),
        ({"pools": {"decode": {"max_num_batched_tokens": 64}}}, 64),
    ]:
        spec = make_spec(settings)
        assert plan_step_tokens(spec, list_slots(spec)[-1]) == budget


def test_a_budget_below_the_number_of_sequences_is_refused_by_name() -> None:
    spec = make_spec({"pools": {"decode": {"max_num_batched_tokens": 8}}})
    with pytest.raises(
        InvalidField, match=r"pools\.decode\.max_num_batched_tokens = 8.*max_num_seqs"
    ):
        plan_step_tokens(spec, list_slots(spec)[-1])
