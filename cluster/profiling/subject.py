"""What is profiled: one model on this machine, as a config file says, and how much of it. No torch.

Covers: engines, points, batches and their sizes that suit the model and the memory. Does not cover:
measuring (``cluster.profiling.run``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from cluster.demo_model import ensure_demo_model
from cluster.engine_bench.cases import OVERHEAD_BATCH, OVERHEAD_PROMPT, WARM_UP_STEPS
from cluster.memory_plan import KV_SHARE_OF_FREE_MEMORY
from cluster.model_folder import ModelFolder, find_model, read_model_folder
from cluster.plan import POOLS, check_shapes, resolve_dtype
from cluster.profiling.machine import (
    hardware_name,
    kernels_name,
    usable_cores,
    visible_gpus,
)
from cluster.profiling.tasks import ANNOUNCED_BYTES, Patience
from cluster.progress import Progress
from core.config import ClusterSpec
from core.errors import InvalidField
from core.kv_layout import DTYPE_BYTES, KVLayout
from core.request import Role
from core.shards import ONE_RANK, ParallelShape, check_kv_split
from core.step_budget import STEP_TOKENS
from core.worker_settings import WorkerSettings
from engine.memory import available_memory
from engine.model_config import read_model_config
from engine.model_hash import model_hash
from tuner.profile.fit import LEAST_POINTS
from tuner.profile.points import (
    EdgeSetting,
    Effort,
    EngineSetting,
    Limits,
    StepPoint,
    design_engines,
    design_steps,
    design_transfers,
)

_PATIENCE = {
    Effort.QUICK: Patience(2, 9, 0.2),
    Effort.NORMAL: Patience(3, 12, 0.25),
    Effort.THOROUGH: Patience(5, 30, 1.5),
}
# Larger steps than the config has, so that the tuner may try them.
_BEYOND = {Effort.QUICK: 1, Effort.NORMAL: 2, Effort.THOROUGH: 4}
# Of one engine's KV while it is measured.
_MOST_KV_BYTES = {Effort.QUICK: 2**30, Effort.NORMAL: 2 * 2**30, Effort.THOROUGH: 8 * 2**30}
# Where each end of a handoff has room for its largest batch, and for other places to put it.
_EDGE_BLOCKS = 256
_LEAST_EDGE_BLOCKS = 6
_SHAPES_OF_TWO = (ParallelShape(1, 2), ParallelShape(2, 1))
_MEASURED_TRANSPORTS = {"cpu": ("shm", "tcp"), "cuda": ("cuda_ipc", "nccl")}


@dataclass(frozen=True, slots=True)
class Subject:
    """``kv_tokens``: what all replicas of this machine can hold together; on a GPU only known when
    one is loaded (None)."""

    spec: ClusterSpec
    effort: Effort
    model: ModelFolder
    model_hash: str
    dtype: str
    hardware: str
    cores: tuple[int, ...]
    layout: KVLayout
    weight_bytes: int
    vocab_size: int
    kv_tokens: int | None

    @property
    def device(self) -> str:
        return self.spec.engine.device

    @property
    def identity(self) -> dict[str, str]:
        """All that a measured time depends on, beside its point and its engine: ``effort`` says how
        often each was measured."""
        return {
            "effort": self.effort.value,
            "model": self.model.name,
            "model_hash": self.model_hash,
            "dtype": self.dtype,
            "device": self.device,
            "kernels": kernels_name(self.spec.engine.kernels),
            "hardware": self.hardware,
            "block_size": str(self.layout.block_size),
        }

    @property
    def patience(self) -> Patience:
        return _PATIENCE[self.effort]

    def patience_for(self, setting: EngineSetting) -> Patience:
        """On a shared core it is chance whose turn it is. Long steps have many turns: that evens
        out by itself, so only short ones are measured more often, and long ones less."""
        patience = self.patience
        if setting.core_share == 1:
            return patience
        return replace(patience, least=patience.least // 2, seconds=2 * patience.seconds)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layout.block_bytes // self.layout.block_size

    @property
    def engines(self) -> tuple[EngineSetting, ...]:
        shapes = self._shapes()
        if self.device == "cuda":
            fitting = [shape for shape in shapes if shape.num_ranks <= len(visible_gpus())]
            return tuple(EngineSetting(shape, 1) for shape in dict.fromkeys((ONE_RANK, *fitting)))
        threads = self.spec.engine.threads
        return design_engines(self.effort, len(self.cores), shapes, threads)

    @property
    def served_engines(self) -> tuple[EngineSetting, ...]:
        """Those that are measured as workers that serve, too: the first one, and the one whose
        threads have all cores, so that router and doors compute on them as well."""
        first, *others = self.engines
        whole = [
            engine
            for engine in others
            if engine == EngineSetting(ONE_RANK, len(self.cores)) and self.device == "cpu"
        ]
        return (first, *whole)

    @property
    def left_out(self) -> tuple[ParallelShape, ...]:
        """Shapes of the config that this machine has too few cores or GPUs for."""
        measured = {engine.shape for engine in self.engines}
        wanted = dict.fromkeys(self.spec.pools.of(pool).shape for pool in POOLS)
        return tuple(shape for shape in wanted if shape not in measured)

    @property
    def max_num_seqs(self) -> int:
        return self.spec.pools.decode.max_num_seqs * _BEYOND[self.effort]

    @property
    def step_tokens(self) -> int:
        stated = [self.spec.pools.of(pool).max_num_batched_tokens or 0 for pool in POOLS]
        return max(STEP_TOKENS[self.device], *stated) * _BEYOND[self.effort]

    def points(self, setting: EngineSetting) -> tuple[StepPoint, ...]:
        return design_steps(self.effort, self._limits(setting))

    def transports(self) -> tuple[str, ...]:
        """Between processes of this host; over a network other numbers hold."""
        known = _MEASURED_TRANSPORTS[self.device]
        wanted = self.spec.kv.transport
        return known if wanted == "auto" else tuple(name for name in known if name == wanted)

    @property
    def edges(self) -> tuple[EdgeSetting, ...]:
        """Between all shapes that are measured, of one rank each first."""
        return tuple(edge for edge in self._all_edges() if not self._lacks_gpus(edge))

    @property
    def edges_left_out(self) -> tuple[EdgeSetting, ...]:
        """Those that this machine has too few GPUs for."""
        return tuple(edge for edge in self._all_edges() if self._lacks_gpus(edge))

    def transfer_blocks(self, edge: EdgeSetting) -> tuple[int, ...]:
        """Up to what is announced at a time: longer batches are several. Some, if blocks are
        large."""
        blocks = max(_LEAST_EDGE_BLOCKS, ANNOUNCED_BYTES // self.layout.block_bytes)
        few = (edge.source, edge.target) != (ONE_RANK, ONE_RANK)
        return design_transfers(min(blocks, _EDGE_BLOCKS), few=few)

    def edge_gpus(self, edge: EdgeSetting) -> tuple[str, ...]:
        """P's, then D's; none on a CPU. With a single GPU both are on it."""
        gpus = visible_gpus() if self.device == "cuda" else []
        needed = edge.num_ranks
        return tuple(gpus[:needed] if len(gpus) >= needed else gpus[:1] * needed)

    def _all_edges(self) -> Iterator[EdgeSetting]:
        shapes = dict.fromkeys((ONE_RANK, *(engine.shape for engine in self.engines)))
        for source, target in product(shapes, repeat=2):
            for transport in self.transports():
                yield EdgeSetting(transport, source, target)

    def _lacks_gpus(self, edge: EdgeSetting) -> bool:
        """Two ranks may be on one GPU only where one process maps the other's memory."""
        if self.device != "cuda" or len(visible_gpus()) >= edge.num_ranks:
            return False
        return not (edge.transport == "cuda_ipc" and edge.num_ranks == 2)

    @property
    def edge_blocks(self) -> int:
        return _EDGE_BLOCKS

    @property
    def overhead_steps(self) -> int:
        return 12 if self.effort is Effort.QUICK else 30

    @property
    def overhead_batches(self) -> tuple[int, ...]:
        """None if the model's sequences are too short for prompts and all steps. Most of the time
        goes into the prompts, so quickly it is two ends of a line."""
        needed = OVERHEAD_PROMPT + WARM_UP_STEPS + self.overhead_steps + 1
        if needed > self.model.max_positions:
            return ()
        return (1, 16) if self.effort is Effort.QUICK else (1, 8, OVERHEAD_BATCH)

    @property
    def served_batches(self) -> tuple[int, ...]:
        return tuple(batch for batch in (1, 8, 16) if batch <= self.max_num_seqs)

    @property
    def served_steps(self) -> int:
        return min(40, self.model.max_positions // 2)

    @property
    def served_prompt(self) -> int:
        return min(256, self.model.max_positions // 2)

    def worker(self, setting: EngineSetting, cores: tuple[int, ...]) -> WorkerSettings:
        """A replica as it is measured: ``cores`` of its leading rank."""
        most = max((point.kv_tokens for point in self.points(setting)), default=0)
        # Contexts grow while they are measured, and each sequence has a block begun.
        growth = self.max_num_seqs * (2 + self.patience.most // self.layout.block_size)
        return WorkerSettings(
            worker="profiled",
            role=Role.MIXED,
            model_folder=str(self.model.path),
            num_blocks=self.layout.blocks_for(most) + growth + 256,
            block_size=self.layout.block_size,
            dtype=self.dtype,
            device=self.device,
            threads=setting.threads,
            cores=cores,
            kernels=self.spec.engine.kernels,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.step_tokens,
            shape=setting.shape,
        )

    def _limits(self, setting: EngineSetting) -> Limits:
        return Limits(
            self.model.max_positions,
            self.step_tokens,
            self.max_num_seqs,
            self._room(1 + setting.company),
        )

    def _room(self, replicas: int) -> int:
        """Tokens whose KV one of ``replicas`` engines may have while it is measured."""
        most = _MOST_KV_BYTES[self.effort] // self.kv_bytes_per_token
        return most if self.kv_tokens is None else min(most, self.kv_tokens // replicas)

    def _shapes(self) -> list[ParallelShape]:
        """Those of the config, and if there is time what two ranks can do."""
        shapes = [self.spec.pools.of(pool).shape for pool in POOLS]
        if self.effort is not Effort.QUICK:
            shapes += [shape for shape in _SHAPES_OF_TWO if self._can_split(shape)]
        return shapes

    def _can_split(self, shape: ParallelShape) -> bool:
        model = self.model
        try:
            check_kv_split(shape, model.num_layers, model.num_kv_heads, model.num_heads)
        except InvalidField:
            return False
        return True


def choose_subject(spec: ClusterSpec, effort: Effort, progress: Progress) -> Subject:
    """Reads the model's config and looks at the machine; quick. Raises what serving would, and
    ``InvalidField`` for sequences that are too short to measure, or a GPU that is not here."""
    if spec.engine.device == "cuda" and not visible_gpus():
        fix = "there is no NVIDIA GPU that this process may use; set cpu, or --from-spec for a GPU"
        raise InvalidField("engine.device", "cuda", fix)
    folder = find_model(spec.model) if spec.model else ensure_demo_model(progress)
    model = read_model_folder(folder)
    check_shapes(spec, model)
    dtype = resolve_dtype(spec, model)
    config = read_model_config(folder)
    layout = model.kv_layout(spec.kv.block_size, dtype)
    positions = spec.max_model_len or model.max_positions
    subject = Subject(
        spec=spec,
        effort=effort,
        model=replace(model, max_positions=min(positions, model.max_positions)),
        model_hash=f"{model_hash(folder):016x}",
        dtype=dtype,
        hardware=hardware_name(spec.engine.device),
        cores=tuple(usable_cores()),
        layout=layout,
        weight_bytes=_weight_bytes(model, dtype),
        vocab_size=config.vocab_size,
        kv_tokens=None,
    )
    free = available_memory()
    if spec.engine.device != "cuda" and free is not None:
        room = int(free * KV_SHARE_OF_FREE_MEMORY) // subject.kv_bytes_per_token
        subject = replace(subject, kv_tokens=room)
    _require_points(subject)
    return subject


def _require_points(subject: Subject) -> None:
    """Before anything is measured that no fit could be made of."""
    for engine in subject.engines:
        points = subject.points(engine)
        if len(points) < LEAST_POINTS or len({point.work.rows for point in points}) < 2:
            longest = subject.model.max_positions
            fix = (
                f"sequences of {longest} tokens and the free memory leave {len(points)} kinds of "
                f"steps to measure, and a fit needs {LEAST_POINTS}; allow longer ones"
            )
            raise InvalidField("max_model_len", subject.spec.max_model_len, fix)


def _weight_bytes(model: ModelFolder, dtype: str) -> int:
    """As they are in memory; headers of the files are too small to matter."""
    stored = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    return stored * DTYPE_BYTES[dtype] // DTYPE_BYTES[model.dtype]
