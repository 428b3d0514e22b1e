"""`kv.transport: tcp` through a whole cluster: the same tokens, all missing blocks over TCP."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_prompts import ANSWER_TOKENS, Prompts
from served_cluster import served

from core.kv_layout import KVLayout
from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(300)]

SMOLLM2_LAYOUT = KVLayout(30, 3, 64, 16, "float32")


def test_tokens_are_those_of_the_oracle_and_blocks_come_over_tcp(
    smollm2: Path, oracle: Oracle, prompts: Prompts, tmp_path: Path
) -> None:
    config = tmp_path / "tcp.yaml"
    config.write_text("kv: {transport: tcp}\nrouter: {disaggregation: prefer}\n")
    # None begins like another: every block of each is missing on D.
    asked = [*prompts.at_once[:2], prompts.at_once[8], prompts.one_by_one[8]]
    missing = sum(SMOLLM2_LAYOUT.blocks_for(len(prompt)) for prompt in asked)
    with served(smollm2, 1, 1, "--dtype", "float32", "--config", str(config)) as cluster:
        answers = cluster.answers(asked, ANSWER_TOKENS)
        (decode,) = cluster.stats("decode")
    (edge,) = decode.edges
    assert (edge.transport, edge.detail) == ("tcp", "")
    assert (edge.blocks, edge.resent_blocks) == (missing, 0)
    assert edge.bytes == missing * SMOLLM2_LAYOUT.block_bytes
    assert decode.prefill_tokens_computed == 0
    near_ties = sum(
        assert_same_tokens(tokens, oracle.greedy(prompt, ANSWER_TOKENS))
        for prompt, tokens in zip(asked, answers, strict=True)
    )
    print(f"{len(asked)} prompts, {near_ties} near ties of the oracle")
