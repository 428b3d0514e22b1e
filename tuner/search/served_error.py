"""How far steps of a cluster that serves are from those that were profiled. Pure.

A profile's residuals say how far its points are from its fit. They don't know what differs between
the measured engine and one that serves, nor how far the machine is from what it was then. That is
known from clusters that were predicted, then measured (docs/PERFORMANCE.md, "Predicted and
measured"). Does not cover: residuals and traffic (``tuner.search.uncertainty``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import exp

import numpy as np

from core.latency_profile import EngineProfile, Interference, LatencyProfile

# Standard deviations of the logarithm: the middle 80 % of predicted TPOT was within 13 % of the
# measured one where workers have cores of their own, within 20 % where they share them.
_SIGMA = 0.10
_SIGMA_ON_SHARED_CORES = 0.15
# Of what neighbours add: between two short measurements of it.
_SIGMA_OF_NEIGHBOURS = 0.3
# Numbers of its own, whatever else is drawn with the same ones before.
_STREAM = (0, 7)


def as_served(profile: LatencyProfile, draw: Sequence[int]) -> LatencyProfile:
    """Measured engines as much faster or slower, and disturbed by neighbours as much more or less,
    as served ones have been; what was computed from data sheets stays as it is. The same ``draw``
    gives the same."""
    generator = np.random.default_rng([*draw, *_STREAM])
    engines = tuple(_served(engine, float(generator.normal())) for engine in profile.engines)
    drawn = float(generator.normal())
    interference = profile.interference and _stronger(
        profile.interference, exp(_SIGMA_OF_NEIGHBOURS * drawn)
    )
    return replace(profile, engines=engines, interference=interference)


def _served(engine: EngineProfile, drawn: float) -> EngineProfile:
    if engine.error is None:
        return engine
    sigma = _SIGMA if engine.core_share == 1 else _SIGMA_ON_SHARED_CORES
    return replace(engine, step=engine.step.scaled(exp(sigma * drawn)))


def _stronger(interference: Interference, factor: float) -> Interference:
    added = {f.name: getattr(interference, f.name) - 1 for f in fields(interference)}
    return Interference(**{name: 1 + value * factor for name, value in added.items()})
