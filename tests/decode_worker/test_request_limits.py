"""A decode worker refuses by name what it could never finish."""

from __future__ import annotations

import pytest

from core.errors import InvalidField
from core.request import SamplingParams
from decode_worker.request_limits import RequestLimits


def test_a_request_fits_if_prompt_and_most_tokens_fill_the_pool() -> None:
    limits = RequestLimits(max_num_seqs=4, pool_tokens=80)
    limits.check(8, SamplingParams(max_tokens=72))
    with pytest.raises(InvalidField, match=r"max_tokens = 73.*80 tokens that this worker's KV"):
        limits.check(8, SamplingParams(max_tokens=73))


def test_nothing_goes_beyond_the_model_s_last_position() -> None:
    limits = RequestLimits(max_num_seqs=4, pool_tokens=80, max_positions=40)
    limits.check(8, SamplingParams(max_tokens=32))
    with pytest.raises(InvalidField, match=r"max_tokens = 33: .* 40 tokens at which this model"):
        limits.check(8, SamplingParams(max_tokens=33))


def test_all_answers_of_a_prompt_can_run_at_a_time() -> None:
    limits = RequestLimits(max_num_seqs=3, pool_tokens=80)
    limits.check(3, SamplingParams(max_tokens=8, n=3))
    with pytest.raises(InvalidField, match=r"n = 4.*at most 3"):
        limits.check(3, SamplingParams(max_tokens=8, n=4))
