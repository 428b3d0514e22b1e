"""Waiting for what another process does: it is asked again and again, and keeps its cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_PAUSE_S = 0.02

T = TypeVar("T")


def wait_until(condition: Callable[[], T]) -> T:
    """Its first answer that is true. The test's timeout bounds the wait."""
    while not (answer := condition()):
        time.sleep(_PAUSE_S)
    return answer
