"""`kv.transport: tcp` through a whole cluster: the same tokens, all missing blocks over TCP."""

from __future__ import annotations

from pathlib import Path

import pytest
from served_cluster import served
from tiny_model import LAYOUT, random_prompt

from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(300)]

ANSWER_TOKENS = 24


def test_tokens_are_those_of_the_oracle_and_blocks_come_over_tcp(
    tiny_model: Path, tiny_oracle: Oracle, tmp_path: Path
) -> None:
    config = tmp_path / "tcp.yaml"
    config.write_text("kv: {transport: tcp}\nrouter: {disaggregation: prefer}\n")
    # None begins like another: every block of each is missing on D.
    asked = [random_prompt(length) for length in (5, 17, 300, 512)]
    missing = sum(LAYOUT.blocks_for(len(prompt)) for prompt in asked)
    with served(tiny_model, 1, 1, "--config", str(config)) as cluster:
        answers = cluster.answers(asked, ANSWER_TOKENS)
        (decode,) = cluster.stats("decode")
    (edge,) = decode.edges
    assert (edge.transport, edge.detail) == ("tcp", "")
    assert (edge.blocks, edge.resent_blocks) == (missing, 0)
    assert edge.bytes == missing * LAYOUT.block_bytes
    assert decode.prefill_tokens_computed == 0
    near_ties = sum(
        assert_same_tokens(tokens, tiny_oracle.greedy(prompt, ANSWER_TOKENS, tokens))
        for prompt, tokens in zip(asked, answers, strict=True)
    )
    print(f"{len(asked)} prompts, {near_ties} near ties of the oracle")
