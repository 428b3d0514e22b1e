"""D's end of a handoff that is measured: its lease rules behind a real server.

    python -m cluster.profiling.handoff_decode_child

Reads an ``EdgeTask``, says its port, ends with its stdin. Every reserve is granted at once, and
every sequence ends at once: no engine is behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time

import grpc

from cluster.process_binding import bind_process
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
from core.shards import ONE_RANK
from crossdock.v1 import handoff_pb2_grpc
from kv_transfer.handshake import WorkerIdentity

HOST = "127.0.0.1"
DECODE_EPOCH = 1


def serve(task: EdgeTask) -> None:
    end_with_stdin()
    # That a slower transport than allowed is taken is on purpose here.
    logging.getLogger("kv_transfer").setLevel(logging.ERROR)
    bind_process(task.cores, max(1, len(task.cores)))
    asyncio.run(_serve(task))


async def _serve(task: EdgeTask) -> None:
    decode = _Decode(task)
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(decode.handoffs, server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    say(port=port)
    await server.wait_for_termination()


class _Decode:
    def __init__(self, task: EdgeTask) -> None:
        # Imported only now: torch reads the affinity of the process when it is imported.
        from engine.kv_pool import KVPool
        from kv_transfer.decode_session import HandoffServer
        from kv_transfer.rank_receiver import LocalRankReceiver
        from worker.pool import receiving_blocks

        pool = KVPool.create(task.layout, task.num_blocks, task.device)
        self._layout = task.layout
        self._blocks = BlockPool(task.num_blocks, task.layout.block_size, pool.generations)
        self._leases = LeaseTable(self._blocks, LeaseTimes(), itertools.count(1).__next__)
        receiver = LocalRankReceiver(
            receiving_blocks(pool), task.layout, ONE_RANK, 0, task.transports
        )
        identity = WorkerIdentity("D", DECODE_EPOCH, model_hash=0, layout=task.layout)
        self.handoffs = HandoffServer(identity, [receiver], self._handle)

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
