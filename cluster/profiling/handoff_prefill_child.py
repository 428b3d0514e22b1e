"""P's end of a handoff that is measured: batches of blocks, announced and timed.

    python -m cluster.profiling.handoff_prefill_child

Reads an ``EdgeTask`` and D's port; says for each transport and batch: seconds from reserve to
ticket, and from the announcement of its blocks to the news that all are verified; or why a
transport does not work. Leads the other ranks of P.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cluster.addresses import LOOPBACK
from cluster.process_binding import bind_process
from cluster.profiling.edge_ranks import all_senders, make_pool, make_sender, start_ranks
from cluster.profiling.handoff_decode_child import DECODE_EPOCH
from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import ANNOUNCED_BYTES, EdgeTask
from core.errors import CrossdockError, InternalError
from core.handoff import Ack, Commit, Committed, FailureCause, Reserve, Ticket, ToPrefill
from core.request import AttemptKey, RequestKey, Role, SamplingParams
from core.step import SampledToken
from kv_transfer.handshake import WorkerIdentity

if TYPE_CHECKING:
    from kv_transfer.prefill_session import PrefillSession
    from kv_transfer.rank_ports import RankSender

Message = TypeVar("Message", Ticket, Ack, Committed)

_WARM_UP = 2
_PATIENCE_S = 30.0


def announce(task: EdgeTask) -> None:
    ports: queue.SimpleQueue[str] = queue.SimpleQueue()
    end_with_stdin(ports.put)
    with contextlib.ExitStack() as others:
        group = start_ranks(task, Role.PREFILL, others)
        cores = task.prefill.rank_cores[0]
        bind_process(cores, max(1, len(cores)))
        pool = make_pool(task, Role.PREFILL, 0)
        sender = make_sender(task, 0, pool)
        senders = all_senders(sender, group)
        port = int(ports.get())
        for transport in task.transports:
            try:
                asyncio.run(_announce(task, senders, transport, port))
            except (CrossdockError, TimeoutError) as error:
                say(transport=transport, failed=str(error) or "nothing came in time")
        sender.close()
        pool.close()


async def _announce(
    task: EdgeTask, senders: Sequence[RankSender], transport: str, port: int
) -> None:
    from kv_transfer.prefill_session import PrefillSession

    heard: asyncio.Queue[ToPrefill | str] = asyncio.Queue()

    def lost(cause: FailureCause, detail: str) -> None:
        heard.put_nowait(f"{cause.value}: {detail}")

    identity = WorkerIdentity(f"P over {transport}", 2, 0, task.layout, task.prefill.shape)
    session = PrefillSession(
        f"{LOOPBACK}:{port}",
        DECODE_EPOCH,
        identity,
        senders,
        stream=transport,
        blocks_per_announcement=max(1, ANNOUNCED_BYTES // task.layout.block_bytes),
        on_message=heard.put_nowait,
        on_lost=lost,
    )
    try:
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
    finally:
        await session.close()


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
