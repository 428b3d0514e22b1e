"""How sure a ratio of two candidates is: the bootstrap over profile errors and traffic.

Each replicate draws another sample of the trace (blocks of consecutive requests) and another
plausible profile: every engine's times are scaled by a factor as far from 1 as its fit was on
points that it had not seen, then by one as far from 1 as serving workers were
(``tuner.search.served_error``). Both candidates of a ratio see the same replicate, so what they
share cancels out (Efron and Tibshirani, "An introduction to the bootstrap", 1993).

Pure. How often the truth lies in the interval is what `tune --validate` reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf
from zlib import crc32

import numpy as np

from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    RowCurve,
    StepModel,
    TransferModel,
    TransferProfile,
)
from tuner.search.served_error import as_served
from tuner.search.space import Accelerators, Candidate, PoolChoice

# A modelled profile was compared with nothing. Rooflines of this kind are reported to be wrong by
# some tens of percent, most of it common to all shapes of one kind of hardware.
MODELLED_SIGMA = 0.2
MODELLED_SIGMA_OF_SHAPE = 0.07
# A step's work is spread over so many of the profiled points.
_POINTS_OF_A_STEP = 4


# A larger ratio means no more than "far better".
MOST_TOLD = 10.0


def ratio_of(one: float, other: float) -> float | None:
    """Of rates; endless over one that serves nothing, None of two that do: they say nothing."""
    if other == 0:
        return inf if one else None
    return one / other


def told(ratio: float) -> float:
    return min(MOST_TOLD, ratio)


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle 80 % of what replicates gave, and their median."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Interval:
        """``values``: at least one."""
        low, median, high = np.percentile(values, [10, 50, 90]).tolist()
        return cls(low, median, high)


def perturbed(candidate: Candidate, number: int, seed: int = 0) -> Candidate:
    """``candidate`` on hardware as the profiles' errors allow it. The same ``number`` and ``seed``
    give the same hardware to every candidate."""
    prefill = None if candidate.prefill is None else other_pool(candidate.prefill, number, seed)
    return Candidate(prefill, tuple(other_pool(pool, number, seed) for pool in candidate.decode))


def other_pool(pool: PoolChoice, number: int, seed: int = 0) -> PoolChoice:
    """``pool`` on such hardware."""
    profile = perturbed_profile(pool.on.profile, number, seed)
    return replace(pool, on=Accelerators(profile, pool.on.count, pool.on.hour_price))


def perturbed_profile(profile: LatencyProfile, number: int, seed: int = 0) -> LatencyProfile:
    """Every engine and edge a little faster or slower. What is drawn for one kind of hardware says
    nothing of another."""
    kind = [seed, number, crc32(profile.hardware.encode())]
    common = float(np.random.default_rng([*kind, 0]).normal())
    engines = tuple(
        replace(engine, step=_scaled(engine.step, *_factors(engine, common, [*kind, place])))
        for place, engine in enumerate(profile.engines, 1)
    )
    beyond = 1 + len(engines)
    transfers = tuple(
        replace(
            transfer,
            model=_scaled_transfer(
                transfer.model, _transfer_factor(transfer, common, [*kind, place])
            ),
        )
        for place, transfer in enumerate(profile.transfers, beyond)
    )
    return as_served(replace(profile, engines=engines, transfers=transfers), kind)


def _transfer_factor(transfer: TransferProfile, common: float, draw: list[int]) -> float:
    if transfer.error is None or not transfer.error.residuals:
        return exp(MODELLED_SIGMA * common)
    generator = np.random.default_rng(draw)
    drawn = generator.choice(np.array(transfer.error.residuals), _POINTS_OF_A_STEP)
    return float(drawn.mean())


def _factors(engine: EngineProfile, common: float, draw: list[int]) -> tuple[float, float]:
    """Of what rows and prompts take, and of what decoding sequences read."""
    generator = np.random.default_rng(draw)
    if engine.error is None or not engine.error.residuals:
        own = generator.normal(size=2) * MODELLED_SIGMA_OF_SHAPE
        first, second = np.exp(MODELLED_SIGMA * common + own).tolist()
    else:
        drawn = generator.choice(np.array(engine.error.residuals), (2, _POINTS_OF_A_STEP))
        first, second = drawn.mean(axis=1).tolist()
    return first, second


def _scaled(step: StepModel, rows: float, context: float) -> StepModel:
    return StepModel(
        rows=RowCurve(tuple((count, round(time * rows)) for count, time in step.rows.points)),
        per_sampled=round(step.per_sampled * rows),
        per_prefill_pair=round(step.per_prefill_pair * rows),
        per_decode_context=round(step.per_decode_context * context),
    )


def _scaled_transfer(model: TransferModel, factor: float) -> TransferModel:
    return TransferModel(round(model.per_batch * factor), round(model.per_token * factor))
