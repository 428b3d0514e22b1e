"""The comparison with the oracle can fail, and forgives only what it says it does."""

from __future__ import annotations

import pytest

from oracle import OracleAnswer, assert_same_tokens

ANSWER = OracleAnswer(tokens=(5, 6, 7), margins=(0.5, 0.00005, 0.5))


def test_equal_tokens_have_no_near_ties() -> None:
    assert assert_same_tokens([5, 6, 7], ANSWER) == 0


def test_what_follows_a_near_tie_is_not_compared() -> None:
    assert assert_same_tokens([5, 9, 1], ANSWER) == 1


@pytest.mark.parametrize("tokens", [[4, 6, 7], [5, 6, 8], [5, 6], [5, 6, 7, 8], []])
def test_other_tokens_and_other_lengths_fail(tokens: list[int]) -> None:
    with pytest.raises(AssertionError):
        assert_same_tokens(tokens, ANSWER)
