"""From a spec to what each rank of each worker is told. Pure: places are passed in.

Covers: the list of workers, whether their shapes suit the model, threads, Ray resources.
Does not cover: memory (``cluster.memory_plan``), where a worker ends up (``cluster.places``) and
its life (``cluster.pool_state``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.model_folder import ModelFolder
from cluster.placement_fit import ReplicaNeed
from core.affinity import assign_cores
from core.config import ClusterSpec
from core.errors import InvalidField
from core.peak_rates import DECLARED, PeakRates
from core.request import Role
from core.shards import check_kv_split
from core.step_budget import step_budget
from core.worker_settings import RankSettings, WorkerSettings

POOLS = ("prefill", "decode")

# Of Ray's CPUs, on a Ray of our own. It counts in ten-thousandths and takes no zero.
OWN_CPU_SHARE = 0.001

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A thread of OpenMP that waits for work would spin, by default for milliseconds (GNU) or a fifth of
# a second (LLVM, Intel), on cores that our own threads and the event loop need. So many turns take
# about 50 µs, as in ``native/threads.cpp``: within a step few have to be woken.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """The place of one worker; a replacement takes the same slot and name."""

    pool: str
    index: int
    role_name: str

    @property
    def role(self) -> Role:
        return Role(self.role_name)

    @property
    def name(self) -> str:
        return f"{self.role_name}-{self.index}"


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where one rank lives: the id of its node, the address that it listens on, its cores."""

    node: str
    host: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What the ranks of one worker are told: the leading one, and the ``others`` in their order."""

    leader: WorkerSettings
    others: tuple[RankSettings, ...] = ()


def list_slots(spec: ClusterSpec) -> list[Slot]:
    """All workers; without prefill replicas the decode pool's workers are mixed."""
    prefill, decode = spec.pools.prefill.replicas, spec.pools.decode.replicas
    decode_role = Role.DECODE if prefill else Role.MIXED
    return [Slot("prefill", i, Role.PREFILL.value) for i in range(prefill)] + [
        Slot("decode", i, decode_role.value) for i in range(decode)
    ]


def check_shapes(spec: ClusterSpec, model: ModelFolder) -> None:
    """Raises ``InvalidField`` with the valid sizes if this model can't be split like that."""
    for pool in POOLS:
        shape = spec.pools.of(pool).shape
        check_kv_split(
            shape, model.num_layers, model.num_kv_heads, model.num_heads, f"pools.{pool}."
        )


def check_threads(spec: ClusterSpec, cores: int) -> None:
    """``cores``: of a node that a rank lives on, or may. Raises ``InvalidField`` for more threads:
    they would take turns, and waiting for each other costs many times what they gain."""
    threads = spec.engine.threads
    if threads is not None and threads > cores:
        here = f"{cores} core{'s' if cores > 1 else ''}"
        fix = f"may be {here} at most, all that can be used there; leave it out for a fair share"
        raise InvalidField("engine.threads", threads, fix)


def replica_need(spec: ClusterSpec, slot: Slot, own_ray: bool) -> ReplicaNeed:
    """Ray resources of each rank of one replica.

    On a Ray that we started for ourselves (``own_ray``) cores are shared out by affinity, and a
    rank takes next to none of Ray's CPUs, so that there is always room for one more. On a cluster
    that others use too it takes a whole CPU.
    """
    pool = spec.pools.of(slot.pool)
    if pool.resources is not None:
        return ReplicaNeed(dict(pool.resources), pool.shape)
    resources = {"CPU": OWN_CPU_SHARE if own_ray else 1.0}
    on_gpu = {"GPU": 1.0} if spec.engine.device == "cuda" else {}
    return ReplicaNeed(resources | on_gpu, pool.shape)


def resolve_dtype(spec: ClusterSpec, model: ModelFolder) -> str:
    """ "auto" is the dtype of the weights, but float32 for float16 weights on a CPU."""
    if spec.engine.dtype != "auto":
        return spec.engine.dtype
    if spec.engine.device == "cpu" and model.dtype == "float16":
        return "float32"
    return model.dtype


def assign_by_node(
    nodes: Mapping[Slot, Sequence[str]], cores: Mapping[str, Sequence[int]]
) -> dict[Slot, list[tuple[int, ...]]]:
    """Cores of each rank of each worker, shared out among the ranks that live on the same node.

    ``nodes``: that of each rank; ``cores``: those of each node.
    """
    on_node: dict[str, list[tuple[Slot, int]]] = {}
    for slot, of_ranks in nodes.items():
        for rank, node in enumerate(of_ranks):
            on_node.setdefault(node, []).append((slot, rank))
    shares: dict[tuple[Slot, int], tuple[int, ...]] = {}
    for node, ranks in on_node.items():
        shares |= zip(ranks, assign_cores(cores[node], len(ranks)), strict=True)
    return {slot: [shares[slot, i] for i in range(len(nodes[slot]))] for slot in nodes}


def replica_settings(
    spec: ClusterSpec,
    model: ModelFolder,
    slot: Slot,
    places: Sequence[RankPlace],
    num_blocks: int,
) -> ReplicaSettings:
    """``places``: one for each rank. ``num_blocks``: of each rank's KV pool."""
    pool = spec.pools.of(slot.pool)
    bound = spec.engine.affinity == "auto"
    threads = [spec.engine.threads or len(place.cores) for place in places]
    cores = [place.cores if bound else () for place in places]
    worker = WorkerSettings(
        worker=slot.name,
        role=slot.role,
        model_folder=str(model.path),
        num_blocks=num_blocks,
        block_size=spec.kv.block_size,
        dtype=resolve_dtype(spec, model),
        device=spec.engine.device,
        threads=threads[0],
        cores=cores[0],
        kernels=spec.engine.kernels,
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=step_budget(spec, slot.pool),
        host=places[0].host,
        transport=spec.kv.transport,
        lease_s=spec.kv.lease,
        beat_s=spec.kv.beat,
        ttft_s=spec.slo.ttft,
        shape=pool.shape,
        tcp_streams=spec.kv.tcp_streams,
        tls=spec.tls_files,
        peak=_declared_peak(spec),
        metrics_port=spec.metrics.worker_port,
        cache_events=spec.kv.events,
        token_stream_port=spec.token_streams.port if spec.token_streams.enabled else None,
        doors=spec.door_files if spec.token_streams.enabled else None,
    )
    others = range(1, len(places))
    return ReplicaSettings(
        worker,
        tuple(RankSettings(worker, i, places[i].host, threads[i], cores[i]) for i in others),
    )


def _declared_peak(spec: ClusterSpec) -> PeakRates | None:
    peak = spec.engine.peak
    return None if peak is None else PeakRates(peak.flops, peak.memory_bandwidth, DECLARED)


def thread_environment(threads: int) -> dict[str, str]:
    """Read by math libraries when they load, hence environment variables."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | _WAITING
