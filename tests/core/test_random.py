"""Counter-based random numbers: the published vectors, and that any worker draws the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.random import philox4x32, uniform

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
ONES = 0xFFFFFFFF
PI_COUNTER = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI_COUNTER, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_philox_gives_the_published_words(counter, key, words) -> None:
    assert philox4x32(counter, key) == words


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_draw_is_a_number_from_0_to_below_1(seed: int, index: int, position: int) -> None:
    assert 0.0 <= uniform(seed, index, position) < 1.0


def test_draws_differ_by_seed_by_sequence_and_by_position() -> None:
    draws = {uniform(s, i, p) for s in (1, 2**40) for i in (0, 1) for p in (0, 1, 2**33)}
    assert len(draws) == 12


def test_draws_are_spread_evenly() -> None:
    draws = np.array([uniform(42, 0, p) for p in range(4_000)])
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    # 400 expected in each bin; chi-square with 9 degrees of freedom, far tail at 40.
    assert ((counts - 400) ** 2 / 400).sum() < 40
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.06
