"""What the simulator says of a configuration under some traffic, and how sure it is. Pure.

Replicates are those of a verdict: other hardware as the profile's errors allow it, other traffic of
the same kind (``tuner.search.uncertainty``). Does not cover: measuring the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from core.config import ClusterSpec
from core.latency_profile import LatencyProfile
from tuner.load.metrics import Slo
from tuner.search.uncertainty import Interval, perturbed_profile
from tuner.simulate.from_spec import PoolProfiles, model_cluster
from tuner.simulate.requests import RequestTrace
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import summarize
from tuner.validate.compare import NUMBERS, Outcome

# The router breaks ties between idle workers by a draw. Where these are not alike (one shares its
# core), a single draw decides much: so many are taken.
_DRAWS = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that an outcome follows from. ``number`` 0: as profiled, else that replicate."""

    spec: ClusterSpec
    profile: LatencyProfile
    trace: RequestTrace
    slo: Slo
    number: int = 0

    def replicate(self, number: int) -> Prediction:
        return replace(self, number=number)


def predict(prediction: Prediction) -> Outcome:
    """Workers share the cores of the host that was profiled. Raises ``InvalidField`` for a pool
    that was not profiled like that."""
    profile, trace, number = prediction.profile, prediction.trace, prediction.number
    if number:
        profile = perturbed_profile(profile, number)
        trace = trace.resampled(np.random.default_rng([0, number]))
    cluster = model_cluster(
        prediction.spec, PoolProfiles(profile, profile), host_cores=profile.cores or None
    )
    seeds = (number,) if number else range(_DRAWS)
    summaries = [summarize(simulate(trace, cluster, seed=s), prediction.slo) for s in seeds]
    return middle([Outcome.of(s.ttft_s, s.tpot_s, s.goodput) for s in summaries])


def middle(outcomes: Sequence[Outcome]) -> Outcome:
    """The median of each number over those that have it; ``outcomes``: at least one."""
    numbers: dict[str, Any] = {}
    for name in NUMBERS:
        values = [value for one in outcomes if (value := one.number(name)) is not None]
        numbers[name] = median(values) if values else None
    return Outcome(**numbers)


def likely(replicates: Sequence[Outcome]) -> dict[str, Interval]:
    """Where each number is expected; none for a number that some replicates don't have."""
    found = {}
    for name in NUMBERS:
        values = [value for one in replicates if (value := one.number(name)) is not None]
        if replicates and len(values) == len(replicates):
            found[name] = Interval.of(values)
    return found
