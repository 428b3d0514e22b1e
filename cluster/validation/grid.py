"""A fixed set of clusters and loads for a machine of two cores: what docs/PERFORMANCE.md shows.

Each engine thread has a core of its own, or three workers share two cores. Two mixes of prompts,
each at a comfortable rate and near the limit of most of the clusters.
"""

from __future__ import annotations

from cluster.validation.run import Configuration, OfferedLoad
from core.config import ClusterSpec, make_spec
from tuner.load.workload import PRESETS
from tuner.simulate.synthetic import Description, PromptMix, draw_requests

# (prefill workers, decode workers, threads of each)
_CLUSTERS = {
    "colocated, 1 core": (0, 1, 1),
    "colocated, 2 cores": (0, 2, 1),
    "1P:1D": (1, 1, 1),
    "2P:1D on 2 cores": (2, 1, 1),
    "1P:2D on 2 cores": (1, 2, 1),
    "colocated, 2 threads": (0, 1, 2),
}
# Requests per second of each preset of `crossdock bench`.
_RATES = {"short": (1.0, 2.0), "mixed": (0.5, 1.0)}


def grid_configurations(model: str | None, dtype: str = "auto") -> tuple[Configuration, ...]:
    return tuple(
        Configuration(name, _spec(model, dtype, *cluster)) for name, cluster in _CLUSTERS.items()
    )


def grid_loads(seconds: float, seed: int = 0) -> tuple[OfferedLoad, ...]:
    """Each for so many seconds."""
    return tuple(
        _load(preset, rate, seconds, seed) for preset, rates in _RATES.items() for rate in rates
    )


def _spec(model: str | None, dtype: str, prefill: int, decode: int, threads: int) -> ClusterSpec:
    return make_spec(
        {
            "model": model,
            "engine": {"dtype": dtype, "threads": threads},
            "pools": {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}},
        }
    )


def _load(preset: str, rate: float, seconds: float, seed: int) -> OfferedLoad:
    """Poisson arrivals with the lengths of the preset."""
    workload = PRESETS[preset].workload
    description = Description(
        rate=rate,
        duration=seconds,
        prompts=tuple(PromptMix(share=part.share, tokens=part.tokens) for part in workload.prompts),
        answers=workload.outputs,
        seed=seed,
    )
    return OfferedLoad(preset, rate, draw_requests(description, preset))
