"""The ranks of one end of a handoff that is measured: a process each, as in a replica that serves.

Covers: their pools, what each offers or takes, starting those that another one leads. None has an
engine. Does not cover: the handoff itself (``handoff_prefill_child``, ``handoff_decode_child``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.addresses import LOOPBACK
from cluster.profiling.child import Child
from cluster.profiling.tasks import EdgeRankTask, EdgeTask
from core.request import Role
from core.shards import ParallelShape, kv_shards, shard_layout
from core.worker_settings import WorkerSettings
from crossdock.v1 import handoff_pb2

if TYPE_CHECKING:
    from engine.kv_pool import KVPool
    from kv_transfer.rank_ports import RankReceiver, RankSender
    from kv_transfer.rank_receiver import LocalRankReceiver
    from kv_transfer.rank_sender import LocalRankSender
    from worker.ranks.group import RankGroup

# Processes that import torch on few cores starve each other.
_START_LIMIT_S = 120.0


def edge_worker(task: EdgeTask, role: Role) -> WorkerSettings:
    """Settings of the replica at that end, as far as its ranks compare them."""
    end = task.end(role)
    return WorkerSettings(
        worker=f"measured {role.value}",
        role=role,
        model_folder="",
        num_blocks=task.num_blocks,
        block_size=task.layout.block_size,
        dtype=task.layout.dtype,
        device=task.device,
        cores=end.rank_cores[0],
        shape=end.shape,
    )


def make_pool(task: EdgeTask, role: Role, rank: int) -> KVPool:
    """The rank's part of all blocks; P's hold random numbers."""
    from engine.kv_pool import KVPool

    shard = kv_shards(task.layout, task.end(role).shape)[rank]
    pool = KVPool.create(shard_layout(task.layout, shard), task.num_blocks, task.device)
    if role is Role.PREFILL:
        pool.tensor.normal_()
    return pool


def make_sender(task: EdgeTask, rank: int, pool: KVPool) -> EachTransport:
    from kv_transfer.rank_sender import LocalRankSender
    from worker.pool import sending_pool

    shape = task.prefill.shape
    return EachTransport(
        {
            transport: LocalRankSender(
                sending_pool(pool), task.layout, shape, rank, [transport], LOOPBACK
            )
            for transport in task.transports
        }
    )


def make_receiver(task: EdgeTask, rank: int, pool: KVPool) -> LocalRankReceiver:
    from kv_transfer.rank_receiver import LocalRankReceiver
    from worker.pool import receiving_blocks

    blocks, shape = receiving_blocks(pool), task.decode.shape
    return LocalRankReceiver(blocks, task.layout, shape, rank, task.transports)


class EachTransport:
    """A `RankSender` that offers a stream the transport that the stream is named after alone."""

    def __init__(self, senders: Mapping[str, LocalRankSender]) -> None:
        self._senders = senders

    async def offer(self, stream: str) -> handoff_pb2.RankOffer:
        return await self._senders[stream].offer(stream)

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        return await self._senders[stream].describe(stream, destination, block_ids)

    def withdraw(self, stream: str) -> None:
        self._senders[stream].withdraw(stream)

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()


def start_ranks(task: EdgeTask, role: Role, others: contextlib.ExitStack) -> RankGroup | None:
    """Those that the calling process leads; None if it is the only one. They load meanwhile."""
    end = task.end(role)
    if end.shape.num_ranks == 1:
        return None
    from worker.ranks.group import RankGroup

    group = RankGroup(edge_worker(task, role))
    for rank in range(1, end.shape.num_ranks):
        told = EdgeRankTask(task, role, rank, group.address.port, group.address.token.hex())
        gpu = end.rank_gpus[rank] if end.rank_gpus else None
        threads = max(1, len(end.rank_cores[rank]))
        others.enter_context(Child("cluster.profiling.handoff_rank_child", told, threads, gpu))
    # Before the processes end: they are told that nobody failed.
    others.callback(group.close)
    return group


def all_senders(own: EachTransport, group: RankGroup | None) -> list[RankSender]:
    """When all ranks are ready. Raises ``Unavailable`` if they don't get so."""
    from worker.ranks.remote_sender import RemoteRankSender

    return [own, *(RemoteRankSender(group, rank) for rank in _ready(group))] if group else [own]


def all_receivers(own: LocalRankReceiver, group: RankGroup | None) -> list[RankReceiver]:
    """When all ranks are ready. Raises ``Unavailable`` if they don't get so."""
    from worker.ranks.remote_receiver import RemoteRankReceiver

    return [own, *(RemoteRankReceiver(group, rank) for rank in _ready(group))] if group else [own]


def _ready(group: RankGroup) -> list[int]:
    group.wait(group.joined, _START_LIMIT_S)
    group.wait(group.ready, _START_LIMIT_S)
    return group.ranks
