"""Greedy float32 tokens through the whole cluster equal those of transformers, at any ratio."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_prompts import ANSWER_TOKENS, Prompts
from served_cluster import served

from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("prefill", "decode"), [(1, 1), (2, 1), (1, 2), (0, 1)], ids=["1P1D", "2P1D", "1P2D", "mixed"]
)
def test_thirty_prompts_get_the_tokens_of_the_oracle(
    smollm2: Path, oracle: Oracle, prompts: Prompts, prefill: int, decode: int
) -> None:
    near_ties = 0
    with served(smollm2, prefill, decode, "--dtype", "float32") as cluster:
        together = cluster.answers(prompts.at_once, ANSWER_TOKENS)
        alone = [cluster.answer(prompt, ANSWER_TOKENS) for prompt in prompts.one_by_one]
        for prompt, tokens in zip(prompts.all, together + alone, strict=True):
            near_ties += assert_same_tokens(tokens, oracle.greedy(prompt, ANSWER_TOKENS))
        if prefill:
            for stats in cluster.stats("decode"):
                assert stats.prefill_tokens_computed == 0
                assert stats.recomputed_tokens == 0
    print(f"{len(prompts.all)} prompts, {near_ties} near ties of the oracle")
