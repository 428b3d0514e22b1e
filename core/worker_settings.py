"""Everything one worker process is told when it starts. Plain values, so that they travel well."""

from __future__ import annotations

from dataclasses import dataclass

from core.request import Role


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings of one replica.

    ``num_blocks`` is the size of its KV pool in blocks; ``max_num_batched_tokens`` the budget of
    one engine step (also the largest prefill chunk); ``cores`` the CPU cores it is bound to
    (empty: not bound); ``transport`` is ``kv.transport``; times are in seconds.
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
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    host: str = "127.0.0.1"
    transport: str = "auto"
    lease_s: float = 30.0
    beat_s: float = 5.0
