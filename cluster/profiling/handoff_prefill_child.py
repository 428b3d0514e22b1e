"""P's end of a handoff that is measured: batches of blocks, announced and timed.

    python -m cluster.profiling.handoff_prefill_child

Reads an ``EdgeTask`` and D's port; says for each transport and batch: seconds from reserve to
ticket, and from the announcement of its blocks to the news that all are verified.
"""

from __future__ import annotations

import asyncio
import queue
import time
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cluster.process_binding import bind_process
from cluster.profiling.handoff_decode_child import DECODE_EPOCH, HOST
from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import ANNOUNCED_BYTES, EdgeTask
from core.errors import InternalError
from core.handoff import Ack, Commit, Committed, FailureCause, Reserve, Ticket, ToPrefill
from core.request import AttemptKey, RequestKey, SamplingParams
from core.shards import ONE_RANK
from core.step import SampledToken
from kv_transfer.handshake import WorkerIdentity

if TYPE_CHECKING:
    from engine.kv_pool import KVPool
    from kv_transfer.prefill_session import PrefillSession

Message = TypeVar("Message", Ticket, Ack, Committed)

_WARM_UP = 2
_PATIENCE_S = 30.0


def announce(task: EdgeTask) -> None:
    ports: queue.SimpleQueue[str] = queue.SimpleQueue()
    end_with_stdin(ports.put)
    bind_process(task.cores, max(1, len(task.cores)))
    # Imported only now: torch reads the affinity of the process when it is imported.
    from engine.kv_pool import KVPool

    pool = KVPool.create(task.layout, task.num_blocks, task.device)
    pool.tensor.normal_()
    port = int(ports.get())
    for transport in task.transports:
        asyncio.run(_announce(task, pool, transport, port))
    pool.close()


async def _announce(task: EdgeTask, pool: KVPool, transport: str, port: int) -> None:
    from kv_transfer.prefill_session import PrefillSession
    from kv_transfer.rank_sender import LocalRankSender
    from worker.pool import sending_pool

    sender = LocalRankSender(sending_pool(pool), task.layout, ONE_RANK, 0, [transport], HOST)
    heard: asyncio.Queue[ToPrefill | str] = asyncio.Queue()

    def lost(cause: FailureCause, detail: str) -> None:
        heard.put_nowait(f"{cause.value}: {detail}")

    session = PrefillSession(
        f"{HOST}:{port}",
        DECODE_EPOCH,
        WorkerIdentity(f"P over {transport}", 2, model_hash=0, layout=task.layout),
        [sender],
        stream="to D",
        blocks_per_announcement=max(1, ANNOUNCED_BYTES // task.layout.block_bytes),
        on_message=heard.put_nowait,
        on_lost=lost,
    )
    hand_over = _HandOver(session, heard, task, transport)
    for blocks in task.batches:
        times = await hand_over.batches(blocks)
        say(
            transport=transport,
            blocks=blocks,
            ticket_s=median(ticket for ticket, _ in times),
            verified_s=median(verified for _, verified in times),
            runs=len(times),
        )
    await session.close()
    sender.close()


class _HandOver:
    def __init__(
        self,
        session: PrefillSession,
        heard: asyncio.Queue[ToPrefill | str],
        task: EdgeTask,
        tenant: str,
    ) -> None:
        """``tenant``: another one for each session, since ids of requests come once."""
        self._tenant = tenant
        self._session = session
        self._heard = heard
        self._task = task
        self._random = np.random.default_rng(0)
        self._number = 0

    async def batches(self, blocks: int) -> list[tuple[float, float]]:
        """As `batch`, several times."""
        patience = self._task.patience
        for _ in range(_WARM_UP):
            await self.batch(blocks)
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + patience.seconds
        while len(times) < patience.least or (
            len(times) < patience.most and time.perf_counter() < end
        ):
            times.append(await self.batch(blocks))
        return times

    async def batch(self, blocks: int) -> tuple[float, float]:
        """Seconds from reserve to ticket, and from announcement to verification."""
        from kv_transfer.prefill_session import Announcement

        self._number += 1
        key = AttemptKey(RequestKey(self._tenant, f"r{self._number}"), 1)
        tokens = self._random.integers(
            0, 2**31 - 1, blocks * self._task.layout.block_size, dtype=np.int32
        )
        places = tuple(self._random.permutation(self._task.num_blocks)[:blocks].tolist())
        started = time.perf_counter()
        self._session.send(Reserve(key, tokens, 0, SamplingParams(8)))
        ticket = await self._hear(Ticket)
        granted = time.perf_counter()
        lease = ticket.lease_id
        self._session.send(Announcement(key, lease, 0, places, (0,) * blocks))
        while (await self._hear(Ack)).verified < blocks:
            pass
        verified = time.perf_counter()
        self._session.send(Commit(key, lease, (SampledToken(1),), 0))
        await self._hear(Committed)
        return granted - started, verified - granted

    async def _hear(self, kind: type[Message]) -> Message:
        async with asyncio.timeout(_PATIENCE_S):
            message = await self._heard.get()
        if not isinstance(message, kind):
            told = message if isinstance(message, str) else type(message).__name__
            raise InternalError(f"the measured handoff failed: {told}", reason="HANDOFF_FAILED")
        return message


if __name__ == "__main__":
    leave(run_task(EdgeTask, announce))
