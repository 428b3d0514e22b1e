"""What the measuring processes are told, and what they say. Plain values; no torch in here.

Tasks travel as one line of JSON to a process's stdin, findings as lines from its stdout.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.kv_layout import KVLayout
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from tuner.profile.points import StepPoint

# A companion computes prompts while a decode step is measured, and the other way round: the two
# kinds of work that a disaggregated cluster has side by side.
PREFILLING, DECODING = "prefill", "decode"
# In front of the name of a point that is measured a second time.
AGAIN = "again: "
# Of what was measured of a point at first, when that was not confirmed.
FIRST = "first: "
# As in ``prefill_worker.service``: a longer announcement is split, and so is several batches.
ANNOUNCED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a point is measured: at least ``least`` times, then until ``seconds`` are over,
    at most ``most`` times."""

    least: int
    most: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineTask:
    """``worker``: settings of the replica's leading rank. ``rank_cores``: those of each rank, none:
    not bound; ``rank_gpus``: the GPU of each rank, none on a CPU.
    ``company``: cores of each other replica that computes meanwhile. ``overhead_batches``: with how
    many sequences the scheduler around a step is measured. ``shares_cores``: with its company."""

    worker: WorkerSettings
    rank_cores: tuple[tuple[int, ...], ...]
    company: tuple[tuple[int, ...], ...]
    points: tuple[StepPoint, ...]
    patience: Patience
    overhead_batches: tuple[int, ...]
    overhead_steps: int
    shares_cores: bool
    rank_gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FollowerTask:
    """A rank that does not lead: where its leader is. ``token``: hexadecimal."""

    worker: WorkerSettings
    rank: int
    cores: tuple[int, ...]
    leader_port: int
    token: str


@dataclass(frozen=True, slots=True)
class CompanyTask:
    """``worker``: settings of a replica of one rank that computes until its stdin ends."""

    worker: WorkerSettings


@dataclass(frozen=True, slots=True)
class Found:
    """One finding: median seconds of ``name``, and of how many runs. ``waited``: for which share of
    them it was kept from its core by others."""

    name: str
    seconds: float
    runs: int
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class EdgeEnd:
    """One replica of a handoff: cores of each rank (none: not bound), and on GPUs the GPU of
    each."""

    shape: ParallelShape
    rank_cores: tuple[tuple[int, ...], ...]
    rank_gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EdgeTask:
    """A handoff between two replicas with pools of ``num_blocks`` blocks of ``layout`` (blocks of
    the whole model). Over each of ``transports`` batches of so many blocks are timed."""

    layout: KVLayout
    device: str
    transports: tuple[str, ...]
    num_blocks: int
    prefill: EdgeEnd
    decode: EdgeEnd
    batches: tuple[int, ...]
    patience: Patience

    def end(self, role: Role) -> EdgeEnd:
        return self.prefill if role is Role.PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class EdgeRankTask:
    """A rank of one end that does not lead it: where its leader is. ``token``: hexadecimal."""

    edge: EdgeTask
    role: Role
    rank: int
    leader_port: int
    token: str


@dataclass(frozen=True, slots=True)
class ServedTask:
    """``worker``: of one rank."""

    worker: WorkerSettings
