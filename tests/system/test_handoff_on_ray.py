"""The handoff between real processes: what is shipped, when, and what a small pool does."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_prompts import Prompts
from ratios import at
from served_cluster import ServedCluster, served
from tiny_model import random_prompt

from core.kv_layout import KVLayout
from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(600)]

SMOLLM2_LAYOUT = KVLayout(30, 3, 64, 16, "float32")


def shipped(cluster: ServedCluster) -> tuple[int, int]:
    """(blocks, bytes) that came over all edges so far."""
    edges = [edge for stats in cluster.stats("decode") for edge in stats.edges]
    assert {edge.transport for edge in edges} <= {"shm"}
    return sum(edge.blocks for edge in edges), sum(edge.bytes for edge in edges)


@at((1, 1))
def test_only_missing_blocks_are_shipped_and_decode_prefills_nothing(
    float32_cluster: ServedCluster, prompts: Prompts
) -> None:
    cluster = float32_cluster
    # Its first token is no other prompt's: no worker has a block of it.
    long = [990, *prompts.one_by_one[4]]
    (before,), shipped_before = cluster.stats("decode"), shipped(cluster)
    first = cluster.answer(long[:1000], 8)
    blocks, moved = (now - old for now, old in zip(shipped(cluster), shipped_before, strict=True))
    assert blocks == SMOLLM2_LAYOUT.blocks_for(1000)
    assert moved == blocks * SMOLLM2_LAYOUT.block_bytes
    again = cluster.answer(long[:1000], 8)
    assert again == first
    # 62 full blocks are held by D now; only the last, partial one is private to a request.
    blocks += shipped_before[0]
    assert shipped(cluster)[0] - blocks == 1
    cluster.answer(long[:1200], 8)
    assert shipped(cluster)[0] - blocks - 1 == SMOLLM2_LAYOUT.blocks_for(1200) - 62
    (stats,) = cluster.stats("decode")
    assert stats.prefill_tokens_computed == before.prefill_tokens_computed


def test_blocks_travel_while_the_prompt_is_still_computed(
    smollm2: Path, prompts: Prompts, tmp_path: Path
) -> None:
    config = tmp_path / "chunks.yaml"
    config.write_text(
        "pools: {prefill: {max_num_batched_tokens: 256}}\nrouter: {disaggregation: prefer}\n"
    )
    with served(smollm2, 1, 1, "--dtype", "float32", "--config", str(config)) as cluster:
        cluster.answer(prompts.one_by_one[4][:1500], 2)
        (prefill,) = cluster.stats("prefill")
        (decode,) = cluster.stats("decode")
    chunks = [e.at_s for e in prefill.events if e.name == "chunk started"]
    received = [e.at_s for e in decode.events if e.name == "blocks received"]
    assert len(chunks) == 6
    assert len(received) >= 6
    assert min(received) < max(chunks)


def test_eight_long_sequences_share_forty_blocks(
    tiny_model: Path, tiny_oracle: Oracle, tmp_path: Path
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("kv: {num_blocks: 40}\nrouter: {disaggregation: prefer}\n")
    starts = [random_prompt(150 + i) for i in range(8)]
    # Of 29 blocks each: two at the same time are too many.
    with served(tiny_model, 1, 1, "--config", str(config)) as cluster:
        answers = cluster.answers(starts, 300)
        (stats,) = cluster.stats("decode")
        assert stats.preemptions > 0, "the pool was meant to be too small"
    near_ties = sum(
        assert_same_tokens(tokens, tiny_oracle.greedy(prompt, 300, tokens))
        for prompt, tokens in zip(starts, answers, strict=True)
    )
    print(f"{stats.preemptions} preemptions, {near_ties} near ties of the oracle")
