"""How many KV blocks each pool gets, and how long a sequence may be then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.memory_plan import (
    PROCESS_BYTES,
    PoolBlocks,
    plan_blocks,
    plan_max_model_len,
    replica_memory,
)
from cluster.model_folder import ModelFolder
from core.config import ClusterSpec, make_spec
from core.errors import InvalidField
from core.kv_config import DEFAULT_KV_BYTES

GIB = 2**30
# 3 layers × K and V × 2 heads × 16 tokens × 16 dims × 2 bytes.
BLOCK_BYTES = 3 * 2 * 2 * 16 * 16 * 2
MODEL = ModelFolder(Path("/models/tiny"), 3, 4, 2, 16, "bfloat16", max_positions=1000)


def spec_of(tp: int = 1, pp: int = 1, prefill: int = 1, **sections: dict) -> ClusterSpec:
    """A decode worker of tp × pp ranks beside ``prefill`` workers of one rank."""
    decode = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    return make_spec({"pools": {"prefill": {"replicas": prefill}, "decode": decode}, **sections})


def test_the_kv_pool_has_a_default_size() -> None:
    blocks = plan_blocks(spec_of(), MODEL, free_memory=64 * GIB)
    assert blocks == PoolBlocks(DEFAULT_KV_BYTES // BLOCK_BYTES, DEFAULT_KV_BYTES // BLOCK_BYTES)


def test_the_default_leaves_half_of_a_small_memory_alone() -> None:
    blocks = plan_blocks(spec_of(), MODEL, free_memory=GIB // 4)
    assert blocks.prefill == GIB // 16 // BLOCK_BYTES


def test_free_memory_is_shared_by_all_ranks_and_a_rank_holds_more_of_smaller_blocks() -> None:
    blocks = plan_blocks(spec_of(tp=2), MODEL, free_memory=GIB // 4)
    share = GIB // 8 // 3
    assert blocks == PoolBlocks(share // BLOCK_BYTES, share // (BLOCK_BYTES // 2))


def test_the_stage_with_most_layers_says_how_many_blocks_there_are() -> None:
    blocks = plan_blocks(spec_of(pp=2, kv={"memory": 10 * BLOCK_BYTES}), MODEL, GIB)
    assert blocks == PoolBlocks(10, 15), "of 3 layers the larger of two stages holds 2"


def test_heads_that_several_ranks_hold_count_on_each() -> None:
    blocks = plan_blocks(spec_of(tp=4, kv={"memory": 10 * BLOCK_BYTES}), MODEL, GIB)
    assert blocks == PoolBlocks(10, 20)


def test_the_kv_pool_can_be_given_in_bytes_or_in_blocks() -> None:
    in_bytes = spec_of(kv={"memory": f"{10 * BLOCK_BYTES + 1}"})
    assert plan_blocks(in_bytes, MODEL, GIB) == PoolBlocks(10, 10)
    in_blocks = spec_of(tp=2, kv={"num_blocks": 40})
    assert plan_blocks(in_blocks, MODEL, GIB) == PoolBlocks(40, 40)


@pytest.mark.parametrize(
    ("memory", "words"),
    [("600MiB", "2 ranks need that much each"), ("1KiB", "one block takes 6144 bytes of a rank")],
)
def test_an_impossible_kv_memory_is_refused(memory: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        plan_blocks(spec_of(kv={"memory": memory}), MODEL, GIB)


@pytest.mark.parametrize(
    ("wanted", "blocks", "length"),
    [
        (None, PoolBlocks(40, 40), 640),
        (None, PoolBlocks(1000, 1000), 1000),
        (None, PoolBlocks(40, 20), 320),
        (500, PoolBlocks(40, 50), 500),
    ],
)
def test_sequences_end_where_the_model_or_the_smaller_pool_does(wanted, blocks, length) -> None:
    spec = make_spec({"max_model_len": wanted})
    assert plan_max_model_len(spec, MODEL, blocks) == length


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(1001, "ends at 1000 tokens"), (641, "of a decode worker, 40 blocks, holds 640 tokens")],
)
def test_a_longer_sequence_than_that_is_refused(wanted: int, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        plan_max_model_len(make_spec({"max_model_len": wanted}), MODEL, PoolBlocks(50, 40))


def test_a_worker_takes_its_weights_its_kv_and_its_processes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    stored = replace(MODEL, path=tmp_path)
    # Cosine and sine of 1000 positions, 8 bfloat16 numbers of each.
    rank = PROCESS_BYTES + 1000 * 2 * 8 * 2
    alone = replica_memory(spec_of(), stored, "decode", 10)
    assert alone == rank + 1000 + 10 * BLOCK_BYTES
    wide = spec_of(engine={"dtype": "float32"})
    assert replica_memory(wide, stored, "decode", 10) == (
        PROCESS_BYTES + 1000 * 2 * 8 * 4 + 2000 + 20 * BLOCK_BYTES
    )
    split = spec_of(tp=2, pp=3)
    assert replica_memory(split, stored, "decode", 10) == 6 * rank + alone - rank
    assert replica_memory(split, stored, "prefill", 10) == alone
    twice = spec_of(tp=4)
    assert replica_memory(twice, stored, "decode", 10) == (4 * rank + 1000 + 20 * BLOCK_BYTES)
