"""A candidate as the config that would serve it: what is simulated is what is written.

Pure. Does not cover: writing files (``outputs``).
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from core.config import ClusterSpec, RouterSpec
from core.kv_config import KVSpec
from core.pool_config import PoolSpec
from tuner.search.space import Candidate, PoolChoice
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.from_spec import PoolProfiles, model_cluster

# More are simulated in equal parts.
MOST_WORKERS = 32


def spec_of(candidate: Candidate, base: ClusterSpec, decode: PoolChoice) -> ClusterSpec:
    """``base`` with the pools of ``candidate``. ``decode``: one of its decode pools (colocated
    serving on two kinds of accelerators is two clusters)."""
    prefill = candidate.prefill
    pools = base.pools.model_copy(
        update={
            "prefill": _pool(base.pools.prefill, prefill),
            "decode": _pool(base.pools.decode, decode),
        }
    )
    on = decode.on.profile
    engine = base.engine.model_copy(
        update={
            "device": on.device,
            "dtype": on.dtype,
            "threads": decode.engine.threads if on.device == "cpu" else None,
        }
    )
    sections = {"pools": pools, "engine": engine, "kv": _kv(candidate, base)}
    if not candidate.is_colocated:
        sections["router"] = _apart(base.router)
    return base.model_copy(update=sections)


def _kv(candidate: Candidate, base: ClusterSpec) -> KVSpec:
    """On GPUs all memory that the smallest rank has left, if the config gives no size: ``serve``
    would take little."""
    kv = base.kv
    profile = candidate.decode[0].on.profile
    if kv.memory is not None or kv.num_blocks is not None or profile.device == "cpu":
        return kv
    per_rank = [
        pool.engine.kv_tokens * pool.on.profile.kv_bytes_per_token // pool.shape.num_ranks
        for pool in candidate.pools
    ]
    return kv.model_copy(update={"memory": min(per_rank)})


def divisor_of(candidate: Candidate) -> int:
    """Into so many equal parts a large cluster can be divided: parts of at most 32 workers, if the
    numbers of its replicas allow it. One of them at as small a part of the rate is simulated: the
    router of the whole has only more choice. Workers that share cores are not divided: a part of
    them would have all the cores."""
    if any(pool.host_cores for pool in candidate.pools):
        return 1
    counts = [pool.replicas for pool in candidate.pools]
    common, workers = gcd(*counts), sum(counts)
    divisors = [d for d in range(1, common + 1) if common % d == 0]
    return next((d for d in divisors if workers // d <= MOST_WORKERS), divisors[-1])


def part_of(candidate: Candidate, divisor: int) -> Candidate:
    """A ``divisor``-th of each pool."""

    def part(pool: PoolChoice) -> PoolChoice:
        return replace(pool, replicas=pool.replicas // divisor)

    prefill = None if candidate.prefill is None else part(candidate.prefill)
    return Candidate(prefill, tuple(part(pool) for pool in candidate.decode))


def model_candidate(candidate: Candidate, base: ClusterSpec) -> ClusterModel:
    """Raises ``InvalidField`` for a pool that has no room for KV, or no profiled transfer."""
    models = [
        model_cluster(
            spec_of(candidate, base, decode), _profiles(candidate, decode), decode.host_cores
        )
        for decode in candidate.decode
    ]
    if len(models) == 1:
        return models[0]
    workers = tuple(worker for model in models for worker in model.workers)
    return replace(models[0], workers=workers, transfer=None)


def _apart(router: RouterSpec) -> RouterSpec:
    """Each pool with its own work, as the bounds and estimates have it."""
    if router.disaggregation != "auto":
        return router
    return router.model_copy(update={"disaggregation": "prefer"})


def _profiles(candidate: Candidate, decode: PoolChoice) -> PoolProfiles:
    prefill = candidate.prefill if candidate.prefill is not None else decode
    return PoolProfiles(prefill.on.profile, decode.on.profile)


def _pool(base: PoolSpec, choice: PoolChoice | None) -> PoolSpec:
    if choice is None:
        return base.model_copy(update={"replicas": 0})
    return base.model_copy(
        update={
            "replicas": choice.replicas,
            "tensor_parallel_size": choice.shape.tensor,
            "pipeline_parallel_size": choice.shape.pipeline,
            "max_num_seqs": choice.limits.max_num_seqs,
            "max_num_batched_tokens": choice.limits.max_num_batched_tokens,
            "gpu_hour_price": choice.on.hour_price or None,
        }
    )
