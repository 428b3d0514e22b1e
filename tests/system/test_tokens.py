"""Greedy float32 tokens through the whole cluster equal those of transformers, at any ratio."""

from __future__ import annotations

import pytest
from oracle_prompts import ANSWER_TOKENS, Prompts
from ratios import at
from served_cluster import ServedCluster

from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(900)]


@at((1, 1), (2, 1), (1, 2), (0, 1))
def test_thirty_prompts_get_the_tokens_of_the_oracle(
    float32_cluster: ServedCluster, oracle: Oracle, prompts: Prompts
) -> None:
    near_ties, before = 0, computed_by_decode_workers(float32_cluster)
    together = float32_cluster.answers(prompts.at_once, ANSWER_TOKENS)
    alone = [float32_cluster.answer(prompt, ANSWER_TOKENS) for prompt in prompts.one_by_one]
    for prompt, tokens in zip(prompts.all, together + alone, strict=True):
        near_ties += assert_same_tokens(tokens, oracle.greedy(prompt, ANSWER_TOKENS, tokens))
    assert computed_by_decode_workers(float32_cluster) == before
    print(f"{len(prompts.all)} prompts, {near_ties} near ties of the oracle")


def computed_by_decode_workers(cluster: ServedCluster) -> list[tuple[int, int]]:
    """Tokens of prompts, at first and again; none where mixed workers do both."""
    stats = cluster.stats("decode")
    return [(one.prefill_tokens_computed, one.recomputed_tokens) for one in stats]
