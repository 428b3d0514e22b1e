"""From a cluster's config and its latency profiles to what is simulated.

Does not cover: reading either file, traffic.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import groupby

from core.config import ClusterSpec
from core.door_limits import door_limits
from core.errors import InvalidField
from core.handoff import LeaseTimes
from core.kv_config import DEFAULT_KV_BYTES, KVSpec
from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    Origin,
    TransferModel,
    TransferProfile,
)
from core.request import Role
from core.shards import ParallelShape
from core.step_budget import step_budget
from router.access_rules import AccessRules
from router.placement import Disaggregation
from router.routing.policies.policy import PolicyName
from tuner.simulate.cluster_model import ClusterModel, HostShare, WorkerModel
from tuner.simulate.core_shares import WorkerPlace, place_workers


@dataclass(frozen=True, slots=True)
class PoolProfiles:
    """Each pool may have hardware of its own. They must be of one model."""

    prefill: LatencyProfile
    decode: LatencyProfile

    def __post_init__(self) -> None:
        one, other = self.prefill, self.decode
        hashes = {profile.model_hash for profile in (one, other)} - {""}
        if len(hashes) > 1 or _served(one) != _served(other):
            fix = f"that of the decode pool is {_in_words(other)}: both pools serve one model"
            raise InvalidField("profile of the prefill pool", _in_words(one), fix)

    def of(self, pool: str) -> LatencyProfile:
        return self.prefill if pool == "prefill" else self.decode


def _served(profile: LatencyProfile) -> tuple[str, str, int]:
    return profile.model, profile.dtype, profile.kv_bytes_per_token


def _in_words(profile: LatencyProfile) -> str:
    of_files = f" ({profile.model_hash})" if profile.model_hash else ""
    return f"{profile.model}{of_files} in {profile.dtype}"


def model_cluster(
    spec: ClusterSpec, profiles: PoolProfiles, host_cores: int | None = None
) -> ClusterModel:
    """``host_cores``: all workers are on one host with so many cores and share them as `crossdock
    serve` does; None: each rank has what it was profiled on.

    Raises ``InvalidField`` if a pool has a shape that was not profiled, or no room for KV.
    """
    disaggregated = spec.pools.prefill.replicas > 0
    if host_cores is None or spec.engine.device != "cpu":
        pools = ("prefill", "decode") if disaggregated else ("decode",)
        workers = tuple(_workers(spec, profiles, pool) for pool in pools)
    else:
        places = place_workers(spec, host_cores)
        workers = tuple(
            _workers_at(spec, profiles, place, len(list(equal)), host_cores)
            for place, equal in groupby(places, _alike)
        )
    return ClusterModel(
        workers=workers,
        block_size=spec.kv.block_size,
        transfer=find_transfer(spec, profiles) if disaggregated else None,
        message_s=profiles.decode.message_s,
        request_s=profiles.decode.request_s,
        ttft_s=spec.slo.ttft,
        tpot_s=spec.slo.tpot,
        disaggregation=Disaggregation(spec.router.disaggregation),
        policy=PolicyName(spec.router.policy),
        times=LeaseTimes(lease=spec.kv.lease, beat=spec.kv.beat),
        max_model_len=min(spec.max_model_len or sys.maxsize, profiles.decode.max_positions),
        access=AccessRules.of(spec.tenants, spec.needs_key, door_limits(spec)),
    )


def find_transfer(spec: ClusterSpec, profiles: PoolProfiles) -> TransferModel:
    """Of the chosen transport, or the fastest that was profiled. Between different kinds of
    hardware the slower side sets the pace."""
    shapes = spec.pools.prefill.shape, spec.pools.decode.shape
    sides = [_fastest(spec, profile, *shapes) for profile in (profiles.prefill, profiles.decode)]
    return max(sides, key=lambda model: model.per_token)


def _fastest(
    spec: ClusterSpec, profile: LatencyProfile, source: object, target: object
) -> TransferModel:
    matching: list[TransferProfile] = [
        transfer
        for transfer in profile.transfers
        if (transfer.source, transfer.target) == (source, target)
        and spec.kv.transport in ("auto", transfer.transport)
    ]
    # A modelled profile knows one network, whatever is sent over it.
    if not matching and profile.origin is Origin.MODELLED:
        matching = [t for t in profile.transfers if (t.source, t.target) == (source, target)]
    if not matching:
        raise InvalidField(
            "kv.transport",
            spec.kv.transport,
            f"no transfer from {source} to {target} was profiled on {profile.hardware}"
            + profile.why_left_out,
        )
    return min((transfer.model for transfer in matching), key=lambda model: model.per_token)


def _workers(spec: ClusterSpec, profiles: PoolProfiles, pool: str) -> WorkerModel:
    """With hardware of their own."""
    chosen = spec.pools.of(pool)
    company = spec.pools.prefill.replicas + spec.pools.decode.replicas - 1
    engine = profiles.of(pool).engine(chosen.shape, threads=spec.engine.threads, company=company)
    return _model(spec, profiles, pool, engine, chosen.replicas)


@dataclass(frozen=True, slots=True)
class _Alike:
    """What workers beside each other have in common that can be one group."""

    pool: str
    threads: int
    shared_core: int | None
    crowd: int
    apart: int


def _alike(place: WorkerPlace) -> _Alike:
    return _Alike(place.pool, place.cores_of_rank, place.shared_core, place.crowd, place.apart)


def _workers_at(
    spec: ClusterSpec, profiles: PoolProfiles, place: _Alike, count: int, host_cores: int
) -> WorkerModel:
    shape, profile = spec.pools.of(place.pool).shape, profiles.of(place.pool)
    threads = spec.engine.threads or place.threads
    others = place.apart + place.crowd
    beside = profile.engine(shape, threads=threads, company=others)
    crowded = beside
    if place.shared_core is not None:
        crowded = profile.engine(shape, 0.5, threads=threads, company=others)
    # Stages compute different steps at the same time: how far each one is nobody could say.
    if not others or shape.pipeline > 1:
        return _model(spec, profiles, place.pool, beside, count)
    alone = replace(profile.engine(shape, threads=threads), kv_tokens=beside.kv_tokens)
    taken = threads * shape.num_ranks
    share = HostShare(
        place.shared_core,
        beside.step,
        crowded.step,
        profile.interference,
        min(1.0, taken / max(1, host_cores - taken)),
    )
    return _model(spec, profiles, place.pool, alone, count, share)


def _model(
    spec: ClusterSpec,
    profiles: PoolProfiles,
    pool: str,
    engine: EngineProfile,
    count: int,
    share: HostShare | None = None,
) -> WorkerModel:
    return WorkerModel(
        role=_role(spec, pool),
        count=count,
        engine=engine,
        num_blocks=_num_blocks(spec, profiles.of(pool), pool, engine.kv_tokens),
        max_num_seqs=spec.pools.of(pool).max_num_seqs,
        max_num_batched_tokens=step_budget(spec, pool),
        share=share,
    )


def _role(spec: ClusterSpec, pool: str) -> Role:
    if pool == "prefill":
        return Role.PREFILL
    return Role.DECODE if spec.pools.prefill.replicas else Role.MIXED


def _num_blocks(spec: ClusterSpec, profile: LatencyProfile, pool: str, kv_tokens: int) -> int:
    most = blocks_of_replica(spec.kv, profile, spec.pools.of(pool).shape, kv_tokens)
    if most < 1:
        raise InvalidField("kv.memory", spec.kv.memory, f"a {pool} replica has no room for a block")
    return most


def blocks_of_replica(
    kv: KVSpec, profile: LatencyProfile, shape: ParallelShape, kv_tokens: int
) -> int:
    """As many as the config says, else as ``serve`` chooses on a CPU, else as the hardware holds,
    which is ``kv_tokens``."""
    if kv.num_blocks is not None:
        return kv.num_blocks
    memory = kv.memory
    if memory is None and profile.device == "cpu":
        memory = DEFAULT_KV_BYTES
    most = kv_tokens // kv.block_size
    if memory is None:
        return most
    return min(most, memory * shape.num_ranks // (profile.kv_bytes_per_token * kv.block_size))
