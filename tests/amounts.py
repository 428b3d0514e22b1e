"""How much of what differs by chance a run tries: the fast half takes the first eighth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import hypothesis
import pytest
from _pytest.mark import ParameterSet

# The fast half loads this profile of hypothesis with --hypothesis-profile.
FAST = "fast"
_PART = 8
_FEWEST_EXAMPLES = 5

T = TypeVar("T")


def examples(count: int, profile: str | None = None) -> int:
    """``max_examples`` of a property test of which the whole suite tries ``count``."""
    fast = (profile or hypothesis.settings.get_current_profile_name()) == FAST
    return max(_FEWEST_EXAMPLES, count // _PART) if fast else count


def some_of(values: Iterable[T]) -> list[ParameterSet]:
    """All values for a parameter; the fast half leaves out all that are marked ``thorough``."""
    return [
        pytest.param(value, marks=pytest.mark.thorough if i % _PART else ())
        for i, value in enumerate(values)
    ]


def seeds(count: int) -> pytest.MarkDecorator:
    """Parametrizes ``seed``; the fast half leaves out all that are marked ``thorough``."""
    few = max(1, count // _PART)
    rest = (pytest.param(seed, marks=pytest.mark.thorough) for seed in range(few, count))
    return pytest.mark.parametrize("seed", [*range(few), *rest])
