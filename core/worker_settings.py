"""Everything one worker process is told when it starts. Plain values, so that they travel well."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.peak_rates import PeakRates
from core.prefill_order import DEFAULT_TTFT_S
from core.request import Role
from core.shards import ONE_RANK, ParallelShape
from core.tls_files import ServerFiles, TlsFiles


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of one replica; ``host``, ``threads`` and ``cores`` are those of rank 0, which
    leads it.

    ``num_blocks`` is the size of each rank's KV pool in blocks; ``max_num_batched_tokens`` the
    budget of one engine step (also the largest prefill chunk); ``cores`` the CPU cores it is bound
    to (empty: not bound); ``kernels`` is ``engine.kernels``; ``transport`` is ``kv.transport``;
    ``tcp_streams`` connections carry the KV blocks of an edge over TCP, by ``tls`` (None: in the
    clear); times are in seconds, ``ttft_s`` is ``slo.ttft``; ``peak``: of one rank, if the config
    declares it; ``metrics_port``: the first that is tried by every rank, 0 any free one for rank 0
    alone; ``cache_events``: whether routers are told what is cached; ``token_stream_port``: the
    first that is tried for clients that read tokens from this worker, 0 any free one, None: there
    are none; ``doors``: what these are shown, None: in the clear.
    """

    worker: str
    role: Role
    model_folder: str
    num_blocks: int
    block_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    cores: tuple[int, ...] = ()
    kernels: str = "auto"
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    host: str = "127.0.0.1"
    transport: str = "auto"
    lease_s: float = 30.0
    beat_s: float = 5.0
    ttft_s: float = DEFAULT_TTFT_S
    shape: ParallelShape = ONE_RANK
    tls: TlsFiles | None = None
    tcp_streams: int = 1
    peak: PeakRates | None = None
    metrics_port: int = 0
    cache_events: bool = True
    token_stream_port: int | None = None
    doors: ServerFiles | None = None


@dataclass(frozen=True, slots=True)
class LeaderAddress:
    """Where the leading rank of a replica waits for the others, and the random token (16 bytes)
    that lets them in."""

    host: str
    port: int
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RankSettings:
    """What a rank is told. ``worker``: its replica's settings."""

    worker: WorkerSettings
    rank: int
    host: str = "127.0.0.1"
    threads: int = 1
    cores: tuple[int, ...] = ()

    @staticmethod
    def of_leader(worker: WorkerSettings) -> RankSettings:
        """The same of rank 0, from its own settings."""
        return RankSettings(worker, 0, worker.host, worker.threads, worker.cores)
