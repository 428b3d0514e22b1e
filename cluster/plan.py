"""From a spec to what each worker is told. Pure: memory, cores and resources are passed in.

Covers: the list of workers, size of the KV pool, longest sequence, threads, Ray resources.
Does not cover: where a worker ends up (``cluster.ray_cluster``) and its life
(``cluster.pool_state``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.model_folder import ModelFolder
from core.affinity import assign_cores
from core.config import ClusterSpec, PoolSpec
from core.errors import InvalidField
from core.kv_layout import DTYPE_BYTES
from core.request import Role
from core.worker_settings import WorkerSettings

DEFAULT_KV_BYTES = 512 * 2**20
# What KV pools may take together of the free memory if nobody says otherwise.
KV_SHARE_OF_FREE_MEMORY = 0.5

# Of Ray's CPUs, on a Ray of our own. It counts in ten-thousandths and takes no zero.
OWN_CPU_SHARE = 0.001
# Python, torch and Ray in a worker's process, in bytes, beside weights and KV.
PROCESS_BYTES = 400 * 2**20

# A CPU core computes chunks of 128 to 1,024 tokens at the same rate (docs/PERFORMANCE.md), and
# with smaller ones less is left to ship after the last. A GPU needs more rows to be busy.
STEP_TOKENS = {"cpu": 256, "cuda": 2048}

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def list_slots(spec: ClusterSpec) -> list[Slot]:
    """All workers; without prefill replicas the decode pool's workers are mixed."""
    prefill, decode = spec.pools.prefill.replicas, spec.pools.decode.replicas
    decode_role = Role.DECODE if prefill else Role.MIXED
    return [Slot("prefill", i, Role.PREFILL.value) for i in range(prefill)] + [
        Slot("decode", i, decode_role.value) for i in range(decode)
    ]


def pool_of(spec: ClusterSpec, slot: Slot) -> PoolSpec:
    return spec.pools.prefill if slot.pool == "prefill" else spec.pools.decode


def resources_of(spec: ClusterSpec, slot: Slot, own_ray: bool) -> dict[str, float]:
    """Ray resources of one replica.

    On a Ray that we started for ourselves (``own_ray``) cores are shared out by affinity, and a
    replica takes next to none of Ray's CPUs, so that there is always room for one more. On a
    cluster that others use too it takes a whole CPU.
    """
    configured = pool_of(spec, slot).resources
    if configured is not None:
        return dict(configured)
    resources = {"CPU": OWN_CPU_SHARE if own_ray else 1.0}
    return resources | {"GPU": 1.0} if spec.engine.device == "cuda" else resources


def resolve_dtype(spec: ClusterSpec, model: ModelFolder) -> str:
    """ "auto" is the dtype of the weights, but float32 for float16 weights on a CPU."""
    if spec.engine.dtype != "auto":
        return spec.engine.dtype
    if spec.engine.device == "cpu" and model.dtype == "float16":
        return "float32"
    return model.dtype


def plan_num_blocks(spec: ClusterSpec, model: ModelFolder, free_memory: int | None) -> int:
    """KV blocks of each worker. ``free_memory``: bytes of the machine they share, if known."""
    if spec.kv.num_blocks is not None:
        return spec.kv.num_blocks
    block_bytes = model.kv_layout(spec.kv.block_size, resolve_dtype(spec, model)).block_bytes
    workers = len(list_slots(spec))
    if spec.kv.memory is None:
        return max(1, _default_kv_bytes(free_memory, workers) // block_bytes)
    if free_memory is not None and spec.kv.memory * workers > free_memory:
        free = f"{free_memory / 2**30:.1f} GiB"
        fix = f"{workers} workers need that much each, but only {free} of memory is free"
        raise InvalidField("kv.memory", spec.kv.memory, fix)
    if spec.kv.memory < block_bytes:
        raise InvalidField("kv.memory", spec.kv.memory, f"one block takes {block_bytes} bytes")
    return spec.kv.memory // block_bytes


def _default_kv_bytes(free_memory: int | None, workers: int) -> int:
    if free_memory is None:
        return DEFAULT_KV_BYTES
    return min(DEFAULT_KV_BYTES, int(free_memory * KV_SHARE_OF_FREE_MEMORY) // workers)


def worker_memory(spec: ClusterSpec, model: ModelFolder, num_blocks: int) -> int:
    """Bytes of host memory that one worker takes, roughly."""
    dtype = resolve_dtype(spec, model)
    kv_bytes = num_blocks * model.kv_layout(spec.kv.block_size, dtype).block_bytes
    if spec.engine.device != "cpu":
        return PROCESS_BYTES
    stored = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    weights = stored * DTYPE_BYTES[dtype] // DTYPE_BYTES[model.dtype]
    return PROCESS_BYTES + weights + kv_bytes


def plan_max_model_len(spec: ClusterSpec, model: ModelFolder, num_blocks: int) -> int:
    """The longest sequence in tokens: what the model can do and one worker's KV pool can hold."""
    room = num_blocks * spec.kv.block_size
    if spec.max_model_len is None:
        return min(model.max_positions, room)
    if spec.max_model_len > model.max_positions:
        fix = f"this model ends at {model.max_positions} tokens"
        raise InvalidField("max_model_len", spec.max_model_len, fix)
    if spec.max_model_len > room:
        fix = f"a KV pool of {num_blocks} blocks holds {room} tokens; raise kv.memory"
        raise InvalidField("max_model_len", spec.max_model_len, fix)
    return spec.max_model_len


def plan_step_tokens(spec: ClusterSpec, slot: Slot) -> int:
    """Token budget of one engine step. A step of decoding takes a token of every sequence."""
    pool = pool_of(spec, slot)
    budget = pool.max_num_batched_tokens
    if budget is None:
        return max(STEP_TOKENS[spec.engine.device], pool.max_num_seqs)
    if slot.role.decodes and budget < pool.max_num_seqs:
        fix = f"must be at least max_num_seqs ({pool.max_num_seqs}): one token for each sequence"
        raise InvalidField(f"pools.{slot.pool}.max_num_batched_tokens", budget, fix)
    return budget


def assign_by_node(
    nodes: Mapping[Slot, str], cores: Mapping[str, Sequence[int]]
) -> dict[Slot, tuple[int, ...]]:
    """Cores of each worker, shared out among the workers that live on the same node."""
    assigned: dict[Slot, tuple[int, ...]] = {}
    for node in set(nodes.values()):
        here = [slot for slot in nodes if nodes[slot] == node]
        assigned.update(zip(here, assign_cores(cores[node], len(here)), strict=True))
    return assigned


def worker_settings(
    spec: ClusterSpec, model: ModelFolder, slot: Slot, cores: tuple[int, ...], num_blocks: int
) -> WorkerSettings:
    pool = pool_of(spec, slot)
    return WorkerSettings(
        worker=slot.name,
        role=slot.role,
        model_folder=str(model.path),
        num_blocks=num_blocks,
        block_size=spec.kv.block_size,
        dtype=resolve_dtype(spec, model),
        device=spec.engine.device,
        threads=spec.engine.threads or len(cores),
        cores=cores if spec.engine.affinity == "auto" else (),
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=plan_step_tokens(spec, slot),
        transport=spec.kv.transport,
    )


def thread_environment(threads: int) -> dict[str, str]:
    """Read by math libraries when they load, hence environment variables."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))
