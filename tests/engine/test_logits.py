"""Bans, bias and penalties against the processors of transformers and OpenAI's definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_row import sample_row, slices_of
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from core.request import SamplingParams
from core.step import SampleSpec
from engine.logits import LogitAdjuster

VOCABULARY = 12
TOKEN_IDS = st.integers(0, VOCABULARY - 1)
PENALTIES = st.sampled_from([-2.0, -0.3, 0.0, 0.5, 2.0])


def random_logits(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 4, VOCABULARY).astype(np.float32)


def adjusted(logits: npt.NDArray[np.float32], spec: SampleSpec) -> npt.NDArray[np.float32]:
    """What one row is while its token is chosen."""
    return adjusted_rows(logits[None], [spec], LogitAdjuster())[0]


def adjusted_rows(
    logits: npt.NDArray[np.float32], specs: list[SampleSpec], adjuster: LogitAdjuster
) -> npt.NDArray[np.float32]:
    """What the rows are while their tokens are chosen; then they are as they were."""
    before = logits.copy()
    adjustments = adjuster.prepare(slices_of([(spec,) for spec in specs]))
    if adjustments is None:
        return before
    with adjustments.applied(torch.from_numpy(logits)):
        changed = logits.copy()
    np.testing.assert_array_equal(logits, before)
    return changed


def spec_of(
    prompt: list[int],
    answer: list[int],
    banned: tuple[int, ...] = (),
    **changes: object,
) -> SampleSpec:
    tokens = np.array(prompt + answer, np.int32)
    params = SamplingParams(max_tokens=99, **changes)  # type: ignore[arg-type]
    return SampleSpec(params, len(tokens), tokens, len(prompt), banned_token_ids=banned)


def transformers_order(logits: npt.NDArray[np.float32], spec: SampleSpec) -> torch.Tensor:
    """Bans, bias and repetition penalty as transformers computes them."""
    ids, scores = torch.from_numpy(spec.tokens)[None].long(), torch.from_numpy(logits)[None]
    if spec.banned_token_ids:
        scores = SuppressTokensLogitsProcessor(list(spec.banned_token_ids), "cpu")(ids, scores)
    if spec.params.logit_bias:
        bias = {(token,): value for token, value in spec.params.logit_bias}
        scores = SequenceBiasLogitsProcessor(bias)(ids, scores)
    return RepetitionPenaltyLogitsProcessor(spec.params.repetition_penalty)(ids, scores)[0]


def openai_penalties(logits: torch.Tensor, spec: SampleSpec) -> torch.Tensor:
    """mu[j] -> mu[j] - c[j] * frequency - float(c[j] > 0) * presence, over the answer."""
    counts = Counter(spec.tokens[spec.prompt_length :].tolist())
    adjusted = logits.clone()
    for j, count in counts.items():
        adjusted[j] -= count * spec.params.frequency_penalty + spec.params.presence_penalty
    return adjusted


@given(
    st.integers(0, 999),
    st.lists(TOKEN_IDS, min_size=1, max_size=20),
    st.lists(TOKEN_IDS, max_size=20),
    st.sampled_from([(), (3,), (0, 11)]),
    st.dictionaries(TOKEN_IDS, st.sampled_from([-100.0, -1.5, 3.0, 100.0]), max_size=4),
    st.sampled_from([0.5, 1.0, 1.2, 2.0]),
    PENALTIES,
    PENALTIES,
)
def test_all_together_are_those_of_transformers_and_openai_in_vllms_order(
    seed: int,
    prompt: list[int],
    answer: list[int],
    banned: tuple[int, ...],
    bias: dict[int, float],
    repetition: float,
    frequency: float,
    presence: float,
) -> None:
    spec = spec_of(
        prompt,
        answer,
        banned,
        logit_bias=tuple(bias.items()),
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    logits = random_logits(seed)
    before = logits.copy()
    expected = openai_penalties(transformers_order(logits, spec), spec)
    ours = torch.from_numpy(adjusted(logits, spec))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    assert np.array_equal(logits, before)


def test_nothing_asked_is_nothing_changed() -> None:
    logits = random_logits(1)
    assert np.array_equal(adjusted(logits, spec_of([1, 2], [3])), logits)


def test_rows_changed_together_are_as_if_alone_and_come_back() -> None:
    specs = [
        spec_of([0, 1], [2, 2], (5,), repetition_penalty=1.3),
        spec_of([4], []),
        spec_of([3, 3], [1, 7], logit_bias=((2, 4.0),), frequency_penalty=0.7),
        spec_of([2], [2, 3, 3], repetition_penalty=0.8, presence_penalty=-1.0),
    ]
    logits = np.stack([random_logits(seed) for seed in range(len(specs))])
    before = logits.copy()
    expected = [adjusted(row, spec) for row, spec in zip(before, specs, strict=True)]
    assert np.array_equal(adjusted_rows(logits, specs, LogitAdjuster()), np.stack(expected))


@given(st.data(), st.integers(0, 99))
def test_what_is_kept_of_sequences_is_as_if_each_step_were_the_first(
    data: st.DataObject, seed: int
) -> None:
    """Sequences grow by a token, miss steps, change places, and others come under their ids."""
    adjuster, buffers = LogitAdjuster(), [np.zeros(40, np.int32) for _ in range(3)]
    params = [
        SamplingParams(40, repetition_penalty=1.3, frequency_penalty=0.4, min_tokens=3),
        SamplingParams(40, presence_penalty=-0.7, logit_bias=((1, 2.0), (4, -3.0))),
        SamplingParams(40, logit_bias=((2, 1.0),)),
    ]
    lengths, banned = [4, 4, 4], [(1, 3), (), (5,)]
    for step in range(8):
        specs = []
        for i in data.draw(st.permutations(range(3)))[: data.draw(st.integers(1, 3))]:
            if lengths[i] > 30 or data.draw(st.integers(0, 9)) == 0:
                buffers[i], lengths[i] = np.zeros(40, np.int32), 4
            for _ in range(data.draw(st.integers(0, 2))):
                buffers[i][lengths[i]] = data.draw(TOKEN_IDS)
                lengths[i] += 1
            bans = banned[i] if lengths[i] < 7 else ()
            specs.append(SampleSpec(params[i], lengths[i], buffers[i], 4, banned_token_ids=bans))
        logits = np.stack([random_logits(seed + step + i) for i in range(len(specs))])
        kept = adjusted_rows(logits, specs, adjuster)
        assert np.array_equal(kept, adjusted_rows(logits, specs, LogitAdjuster()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("hidden_by", [{"banned": (3,)}, {"repetition_penalty": 1.5}])
def test_nothing_covers_up_what_is_no_number(bad: float, hidden_by: dict[str, object]) -> None:
    logits = random_logits(2)
    logits[3] = bad
    assert np.isnan(adjusted(logits, spec_of([3], [3], **hidden_by))[3])  # type: ignore[arg-type]
    assert not np.isfinite(logits[3])


def test_repetition_counts_the_prompt_and_the_others_the_answer_only() -> None:
    logits = np.array([4.0, -4.0, 4.0, -4.0, 1.0], np.float32)
    repeated = adjusted(logits, spec_of([0, 1, 0], [2, 2, 3], repetition_penalty=2.0))
    assert repeated.tolist() == [2.0, -8.0, 2.0, -8.0, 1.0]
    often = adjusted(logits, spec_of([0, 1, 0], [2, 2, 3], frequency_penalty=0.5))
    assert often.tolist() == [4.0, -4.0, 3.0, -4.5, 1.0]
    present = adjusted(logits, spec_of([0, 1, 0], [2, 2, 3], presence_penalty=0.5))
    assert present.tolist() == [4.0, -4.0, 3.5, -4.5, 1.0]


def test_greedy_takes_the_likeliest_after_penalties_and_bias() -> None:
    logits = np.array([3.0, 2.9, 2.8, 0.0], np.float32)

    def chosen(spec: SampleSpec) -> int:
        return sample_row(logits, (spec,))[0].token

    assert chosen(spec_of([0], [0])) == 0
    assert chosen(spec_of([0], [1], repetition_penalty=1.5)) == 2
    assert chosen(spec_of([0], [0, 1], presence_penalty=1.0)) == 2
    assert chosen(spec_of([0], [0], logit_bias=((3, 100.0),))) == 3
    assert chosen(spec_of([0], [], (0, 1))) == 2


def test_banned_and_unwanted_ids_are_never_drawn() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    unwanted = ((0, -100.0),)
    for seed in range(50):
        spec = spec_of([0], [], (2,), logit_bias=unwanted, temperature=1.0, seed=seed)
        assert sample_row(logits, (spec,))[0].token == 1


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-40])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_smallest_repetition_penalties_stay_finite(penalty: float, temperature: float) -> None:
    logits = np.array([1.0, 9.0, 0.0, -5.0], np.float32)
    spec = spec_of([0, 2, 3], [], repetition_penalty=penalty, temperature=temperature)
    assert bool(np.isfinite(adjusted(logits, spec)).all())
    assert sample_row(logits, (spec,))[0].token == 0
