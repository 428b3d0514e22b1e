"""When requests arrive: a Poisson process, an even beat, or the stamps of a trace.

Pure: times are seconds from the start of a run, float64 [n], ascending.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from core.errors import InvalidField

Times = npt.NDArray[np.float64]

MAX_REQUESTS = 1_000_000


class ArrivalKind(StrEnum):
    """What ``--arrivals`` takes."""

    POISSON = "poisson"
    CONSTANT = "constant"


def draw_arrivals(
    kind: ArrivalKind, rate: float, duration_s: float, generator: np.random.Generator
) -> Times:
    """Arrivals in [0, duration_s) at ``rate`` per second.

    Raises ``InvalidField`` for more than ``MAX_REQUESTS``; may be empty.
    """
    if rate * duration_s > MAX_REQUESTS:
        raise InvalidField("--rate", rate, f"makes more than {MAX_REQUESTS} requests")
    if kind is ArrivalKind.CONSTANT:
        beat: Times = np.arange(math.ceil(rate * duration_s), dtype=np.float64) / rate
        return beat
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    count = int(generator.poisson(rate * duration_s))
    arrivals: Times = np.sort(generator.uniform(0.0, duration_s, count))
    return arrivals


def replay_arrivals(stamps_s: Times, speed: float) -> Times:
    """The stamps of a trace from its first one on, ``speed`` times as fast."""
    arrivals: Times = (stamps_s - stamps_s[0]) / speed
    return arrivals
