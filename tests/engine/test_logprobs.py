"""Log-probabilities against torch's log-softmax, and that nothing in a request changes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_row import sample_row

from core.request import SamplingParams
from core.step import SampleSpec
from engine.logprobs import token_logprobs


def random_logits(
    seed: int, vocab: int, spread: float, decimals: int = 8
) -> npt.NDArray[np.float32]:
    normal = np.random.default_rng(seed).normal(0, spread, vocab)
    return normal.round(decimals).astype(np.float32)


@given(
    st.integers(0, 999),
    st.sampled_from([1, 3, 19, 400, 5000]),
    st.sampled_from([0.0, 0.5, 4.0, 50.0]),
    st.sampled_from([0, 1, 5, 20]),
    st.sampled_from([0, 8]),
)
def test_they_are_those_of_torch_and_equals_come_by_lower_id(
    seed: int, vocab: int, spread: float, count: int, decimals: int
) -> None:
    logits = random_logits(seed, vocab, spread, decimals)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    order = sorted(range(vocab), key=lambda i: (-logits[i], i))[:count]
    tokens = [0, vocab - 1]
    for token, ours in zip(tokens, token_logprobs(logits, tokens, count), strict=True):
        assert ours.logprob == pytest.approx(expected[token], rel=1e-9, abs=1e-12)
        assert list(ours.top_ids) == order
        assert ours.top_logprobs == pytest.approx(expected[order].tolist(), rel=1e-9, abs=1e-12)


def test_a_request_changes_its_token_but_not_the_models_probabilities() -> None:
    logits = random_logits(3, 60, 2.0)
    likeliest = int(logits.argmax())
    changed = SamplingParams(
        max_tokens=1,
        temperature=0.5,
        top_k=4,
        repetition_penalty=1.5,
        logit_bias=((likeliest, -100.0),),
        logprobs=5,
    )
    tokens = np.arange(10, dtype=np.int32)
    (drawn,) = sample_row(logits, (SampleSpec(changed, 10, tokens, 5, banned_token_ids=(2,)),))
    (plain,) = sample_row(logits, (SampleSpec(SamplingParams(1, logprobs=5), 10),))
    assert drawn.token != plain.token == likeliest
    assert drawn.logprobs is not None
    assert plain.logprobs is not None
    assert drawn.logprobs.top_ids == plain.logprobs.top_ids
    assert drawn.logprobs.top_logprobs == plain.logprobs.top_logprobs
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    assert drawn.logprobs.logprob == pytest.approx(float(expected[drawn.token]))


def test_none_asked_is_none_and_zero_asked_is_the_chosen_one_only() -> None:
    logits = random_logits(4, 60, 2.0)
    (silent,) = sample_row(logits, (SampleSpec(SamplingParams(1), 0),))
    assert silent.logprobs is None
    (bare,) = sample_row(logits, (SampleSpec(SamplingParams(1, logprobs=0), 0),))
    assert bare.logprobs is not None
    assert (bare.logprobs.top_ids, bare.logprobs.top_logprobs) == ((), ())
    assert bare.logprobs.logprob < 0
