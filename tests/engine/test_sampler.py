"""Greedy and seeded sampling: the filters, the distribution, and that draws can be repeated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.random import uniform
from core.request import SamplingParams
from core.step import SampleSpec
from engine.sampler import sample, sample_row

GREEDY = SamplingParams(max_tokens=1)


def hot(**changes: float) -> SamplingParams:
    return SamplingParams(max_tokens=1, **({"temperature": 1.0, "seed": 5} | changes))  # type: ignore[arg-type]


def logits_of(*probabilities: float) -> npt.NDArray[np.float32]:
    return np.log(np.array(probabilities, dtype=np.float32))


def drawn(logits: npt.NDArray[np.float32], params: SamplingParams, draws: int) -> list[int]:
    return [sample_row(logits, SampleSpec(params, position)) for position in range(draws)]


def plain_draw(logits: npt.NDArray[np.float32], params: SamplingParams, draw: float) -> int:
    """The definition, without any shortcut: sort everything, filter, walk the cumulated sum."""
    weights = np.exp(logits.astype(np.float64) / params.temperature)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept = [i for i in order if weights[i] >= params.min_p * weights.max()]
    kept = kept[: params.top_k or None]
    nucleus, total = [], sum(weights[i] for i in kept)
    for i in kept:
        nucleus.append(i)
        if sum(weights[j] for j in nucleus) >= params.top_p * total:
            break
    target, reached = draw * sum(weights[i] for i in nucleus), 0.0
    for i in nucleus:
        reached += weights[i]
        if reached > target:
            return i
    return nucleus[-1]


def test_greedy_takes_the_likeliest_and_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 0.0, 0.0, 2.0]])
    assert sample(logits, [SampleSpec(GREEDY, 0)] * 2) == [1, 0]


def test_banned_ids_are_never_chosen_and_the_logits_stay_as_they_are() -> None:
    logits = logits_of(0.6, 0.3, 0.1)
    before = logits.copy()
    assert sample_row(logits, SampleSpec(GREEDY, 0, banned_token_ids=(0,))) == 1
    spec = [SampleSpec(hot(), i, banned_token_ids=(0, 2)) for i in range(20)]
    assert {sample_row(logits, one) for one in spec} == {1}
    assert np.array_equal(logits, before)


@given(
    st.integers(0, 2**32),
    st.integers(2, 40),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([1.0, 0.9, 0.4]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.0, 0.05, 0.6]),
)
def test_every_draw_is_the_one_of_the_definition(
    seed: int, vocab: int, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, vocab).round(1).astype(np.float32)
    params = hot(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    spec = SampleSpec(params, position=3, sequence_index=2)
    assert sample_row(logits, spec) == plain_draw(logits, params, uniform(seed, 2, 3))


@pytest.mark.parametrize("top_p", [1.0, 0.97])
@pytest.mark.parametrize("size", [5000, 20000])
def test_a_flat_distribution_over_a_large_vocabulary_reaches_its_tail(
    size: int, top_p: float
) -> None:
    logits = np.linspace(0, -0.5, size, dtype=np.float32)
    params = hot(top_p=top_p)
    for position in range(30):
        expected = plain_draw_sorted(logits, params, uniform(params.seed, 0, position))
        assert sample_row(logits, SampleSpec(params, position)) == expected


def plain_draw_sorted(logits: npt.NDArray[np.float32], params: SamplingParams, draw: float) -> int:
    """The definition for logits that are sorted already and have no other filter than top_p."""
    cumulated = np.exp(logits.astype(np.float64)).cumsum()
    last = int(np.argmax(cumulated >= params.top_p * cumulated[-1]))
    return int(np.argmax(cumulated > draw * cumulated[last]))


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    counts = np.bincount(drawn(logits_of(*probabilities), hot(), 4000), minlength=4)
    chi_square = float(((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum())
    assert chi_square < 16.3  # exceeded by chance once in a thousand; the seed is fixed


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        (hot(top_k=2), {0, 1}),
        (hot(top_p=0.7), {0, 1}),
        (hot(top_p=0.5), {0}),
        (hot(min_p=0.25), {0, 1, 2}),
        (hot(top_k=3, top_p=0.8), {0, 1}),
        (hot(temperature=0.01), {0}),
    ],
)
def test_filters_leave_the_likeliest(params: SamplingParams, possible: set[int]) -> None:
    assert set(drawn(logits_of(0.5, 0.25, 0.15, 0.1), params, 200)) == possible


def test_draws_depend_on_seed_sequence_and_position_and_nothing_else() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    specs = [
        SampleSpec(hot(seed=seed), position, sequence)
        for seed in (1, 2)
        for position in (0, 1)
        for sequence in (0, 1)
    ]
    alone = [sample_row(logits, spec) for spec in specs]
    assert len(set(alone)) == len(alone)
    together = sample(torch.zeros(len(specs), 1000), list(reversed(specs)))
    assert together == list(reversed(alone))
