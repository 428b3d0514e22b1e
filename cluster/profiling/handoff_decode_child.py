"""D's end of a handoff that is measured: its lease rules behind a real server.

    python -m cluster.profiling.handoff_decode_child

Reads an ``EdgeTask``, says its port, ends with its stdin. Every reserve is granted at once, and
every sequence ends at once: no engine is behind it. Leads the other ranks of D.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from cluster.addresses import LOOPBACK
from cluster.process_binding import bind_process
from cluster.profiling.edge_ranks import all_receivers, make_pool, make_receiver, start_ranks
from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import EdgeTask
from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.handoff import LeaseTimes
from core.lease import LeaseTable
from core.lease_events import (
    CopyPieces,
    EnqueueReserve,
    Granted,
    LeaseInput,
    Opened,
    SendToPrefill,
    StartSequence,
)
from core.request import Role
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handshake import WorkerIdentity

if TYPE_CHECKING:
    from engine.kv_pool import KVPool
    from kv_transfer.rank_ports import RankReceiver

DECODE_EPOCH = 1


def serve(task: EdgeTask) -> None:
    end_with_stdin()
    # That a slower transport than allowed is taken is on purpose here.
    logging.getLogger("kv_transfer").setLevel(logging.ERROR)
    with contextlib.ExitStack() as others:
        group = start_ranks(task, Role.DECODE, others)
        cores = task.decode.rank_cores[0]
        bind_process(cores, max(1, len(cores)))
        pool = make_pool(task, Role.DECODE, 0)
        receivers = all_receivers(make_receiver(task, 0, pool), group)
        asyncio.run(_serve(_Decode(task, pool, receivers)))


async def _serve(decode: _Decode) -> None:
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(decode.handoffs, server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    await server.start()
    say(port=port)
    await server.wait_for_termination()


class _Decode:
    def __init__(self, task: EdgeTask, pool: KVPool, receivers: Sequence[RankReceiver]) -> None:
        # Imported only now: torch reads the affinity of the process when it is imported.
        from kv_transfer.decode_session import HandoffServer

        self._layout = task.layout
        self._blocks = BlockPool(task.num_blocks, task.layout.block_size, pool.generations)
        self._leases = LeaseTable(self._blocks, LeaseTimes(), itertools.count(1).__next__)
        identity = WorkerIdentity("D", DECODE_EPOCH, 0, task.layout, task.decode.shape)
        self.handoffs = HandoffServer(identity, receivers, self._handle)

    def _handle(self, event: LeaseInput) -> None:
        for command in self._leases.handle(event, time.monotonic()):
            match command:
                case SendToPrefill(peer, message):
                    self.handoffs.send(peer, message)
                case CopyPieces():
                    self.handoffs.copy(command)
                case EnqueueReserve(key, tokens, salt, _):
                    size = self._layout.block_size
                    fresh = self._blocks.allocate(-(-len(tokens) // size))
                    assert fresh is not None, "one prompt at a time"
                    self._handle(Opened(key))
                    self._handle(Granted(key, fresh, 0, block_hashes(tokens, size, salt)))
                case StartSequence():
                    self._blocks.release(command.block_ids)


if __name__ == "__main__":
    leave(run_task(EdgeTask, serve))
