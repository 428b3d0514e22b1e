"""Sampling through the whole cluster: who computes an answer, and beside whom, changes no token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from oracle_prompts import Prompts
from ratios import at
from served_cluster import ServedCluster

from core.kv_layout import KVLayout
from crossdock.v1 import inference_pb2 as pb
from oracle import Oracle

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(600)]

ANSWER_TOKENS = 16
# float32 sums in another order differ by less.
NEAR = 2e-4


@dataclass
class Answer:
    """One of the n answers."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    complete: pb.Complete = field(default_factory=pb.Complete)


def ask(cluster: ServedCluster, prompt: Sequence[int], **sampling: Any) -> list[Answer]:
    """All answers to one prompt, by index."""
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=list(prompt)), sampling=pb.SamplingParams(**sampling)
    )
    answers = [Answer() for _ in range(sampling.get("n", 1))]
    for response in cluster.inference.Generate(request, timeout=240):
        answer = answers[response.index]
        answer.tokens += response.chunk.token_ids
        answer.text += response.chunk.text
        answer.logprobs += response.chunk.logprobs
        if response.HasField("complete"):
            answer.complete = response.complete
    return answers


def sampled(cluster: ServedCluster, task: tuple[int, list[int]]) -> list[int]:
    """Every parameter at work; the seed is the task's number."""
    seed, prompt = task
    (answer,) = ask(
        cluster,
        prompt,
        seed=seed,
        temperature=0.9,
        top_p=0.95,
        top_k=200,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias={100: -5.0, 200: 1.5},
        max_tokens=ANSWER_TOKENS,
        min_tokens=4,
        ignore_eos=True,
    )
    return answer.tokens


# Tests of another file may come in between.
@pytest.fixture(scope="session")
def answers_of_a_pair() -> list[list[int]]:
    """What a prefill and a decode worker answered, for those who do it alone after them."""
    return []


@at((1, 1))
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch_with_hits(
    float32_cluster: ServedCluster, prompts: Prompts, answers_of_a_pair: list[list[int]]
) -> None:
    tasks = seeded(prompts)
    alone = [sampled(float32_cluster, task) for task in tasks]
    answers_of_a_pair += alone
    assert {len(tokens) for tokens in alone} == {ANSWER_TOKENS}
    assert all_at_once(float32_cluster, tasks) == alone


@at((0, 1))
def test_a_seed_gives_the_same_tokens_wherever_and_beside_whomever(
    float32_cluster: ServedCluster, prompts: Prompts, answers_of_a_pair: list[list[int]]
) -> None:
    if not answers_of_a_pair:
        pytest.skip("it is compared with the answers of the test before, which was not run")
    tasks = seeded(prompts)
    assert all_at_once(float32_cluster, tasks) == answers_of_a_pair
    with_hits = [sampled(float32_cluster, task) for task in tasks]
    assert with_hits == answers_of_a_pair


def seeded(prompts: Prompts) -> list[tuple[int, list[int]]]:
    """Their first token is no other prompt's: the first time no worker has a block of them."""
    tasks = [(seed, [991, *prompt[:199]]) for seed, prompt in enumerate(prompts.at_once)]
    assert len(tasks) == 16
    return tasks


def all_at_once(cluster: ServedCluster, tasks: list[tuple[int, list[int]]]) -> list[list[int]]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: sampled(cluster, task), tasks))


@at((1, 1))
def test_several_answers_cost_one_prefill_and_one_transfer(
    float32_cluster: ServedCluster, prompts: Prompts, oracle: Oracle
) -> None:
    prompt = [992, *prompts.one_by_one[6]]
    assert len(prompt) % 16, "the last block is shared and partly filled"
    layout = KVLayout(30, 3, 64, 16, "float32")
    before = work_of_a_pair(float32_cluster)
    sampling = {"seed": 11, "temperature": 1.2, "ignore_eos": True}
    answers = ask(float32_cluster, prompt, n=5, max_tokens=20, logprobs=3, **sampling)
    assert work_of_a_pair(float32_cluster) - before == Counter(
        prefilled=len(prompt), transferred=layout.blocks_for(len(prompt))
    )
    assert len({tuple(answer.tokens) for answer in answers}) == 5
    for answer in answers:
        assert (len(answer.tokens), answer.complete.completion_tokens) == (20, 20)
        assert_logprobs_of_the_oracle(oracle, prompt, answer)


def work_of_a_pair(cluster: ServedCluster) -> Counter[str]:
    """Tokens that P computed and that D did, and blocks that came to D."""
    (prefill,), (decode,) = cluster.stats("prefill"), cluster.stats("decode")
    return Counter(
        prefilled=prefill.prefill_tokens_computed,
        prefilled_by_decode=decode.prefill_tokens_computed + decode.recomputed_tokens,
        transferred=sum(edge.blocks for edge in decode.edges),
    )


def assert_logprobs_of_the_oracle(oracle: Oracle, prompt: list[int], answer: Answer) -> None:
    rows = oracle.logprobs([*prompt, *answer.tokens], len(answer.tokens))
    for token, told, row in zip(answer.tokens, answer.logprobs, rows, strict=True):
        assert told.token_id == token
        assert abs(told.logprob - row[token]) < NEAR
        assert len(told.top) == 3
        best = np.sort(row)[:-4:-1]
        assert all(abs(c.logprob - b) < NEAR for c, b in zip(told.top, best, strict=True))
        assert all(abs(c.logprob - row[c.token_id]) < NEAR for c in told.top)


@at((1, 1))
def test_answers_end_one_by_one_by_their_stop_strings(float32_cluster: ServedCluster) -> None:
    prompt = [504, 2365, 282, 3719, 314]
    sampling = {"seed": 3, "temperature": 1.0, "ignore_eos": True, "max_tokens": 24, "n": 4}
    whole = ask(float32_cluster, prompt, **sampling)
    # A piece across token borders of one answer; the others are cut where they have it too.
    stop = whole[1].text[9:15]
    assert stop
    cut = ask(float32_cluster, prompt, stop=[stop], **sampling)
    for before, after in zip(whole, cut, strict=True):
        found = before.text.find(stop)
        assert after.text == (before.text if found < 0 else before.text[:found])
        assert after.complete.finish_reason == ("length" if found < 0 else "stop")
    assert cut[1].complete.finish_reason == "stop"
