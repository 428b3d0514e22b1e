"""What a handoff costs beside its bytes, between two processes of one host over a kept stream.

    python tests/benchmarks/bench_handoff.py [--runs 1000] [--json]

P and D run the shells of their handoff with nothing behind them: no engine, no router; D grants at
once. Rows: a prompt whose blocks have next to no bytes (the control cost: every message, copying
and checking included), and the last chunk of 256 tokens of SmolLM2-135M in bfloat16 (16 blocks,
5.9 MB) through shared memory. Columns, medians in milliseconds: from reserve to ticket; from the
end of the prefill (announce and commit are said) to committed; both together; the transfer itself,
which is describing on P and copying and verifying on D; what the end of the prefill costs beyond.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import grpc
import numpy as np

from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.handoff import Commit, Committed, LeaseTimes, Reserve, Ticket, ToPrefill
from core.kv_layout import KVLayout
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
from core.request import AttemptKey, RequestKey, SamplingParams
from core.shards import ONE_RANK
from core.step import SampledToken
from crossdock.v1 import handoff_pb2_grpc
from engine.kv_pool import KVPool
from kv_transfer.decode_session import HandoffServer
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.prefill_session import Announcement, PrefillSession
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.rank_sender import LocalRankSender
from kv_transfer.regions import checksum_parts
from worker.pool import receiving_blocks, sending_pool

HOST = "127.0.0.1"
DECODE_EPOCH = 11
WARM_UP = 50
LAYOUTS = {
    "no bytes": KVLayout(1, 1, head_dim=8, block_size=16, dtype="bfloat16"),
    "last 256 tokens": KVLayout(30, 3, head_dim=64, block_size=16, dtype="bfloat16"),
}
NUM_BLOCKS = 64
PROMPT_BLOCKS = 16


def identity(worker: str, epoch: int, layout: KVLayout) -> WorkerIdentity:
    return WorkerIdentity(worker, epoch, model_hash=5, layout=layout)


# D's process


@dataclass
class Decode:
    """D's lease rules behind a real server; every reserve is granted, every sequence ends."""

    layout: KVLayout
    pool: KVPool = field(init=False)

    def __post_init__(self) -> None:
        self.pool = KVPool.create(self.layout, NUM_BLOCKS, "cpu")
        self.blocks = BlockPool(NUM_BLOCKS, self.layout.block_size, self.pool.generations)
        self.leases = LeaseTable(self.blocks, LeaseTimes(), itertools.count(1).__next__)
        receiver = LocalRankReceiver(receiving_blocks(self.pool), self.layout, ONE_RANK, 0, ["shm"])
        me = identity("D", DECODE_EPOCH, self.layout)
        self.handoffs = HandoffServer(me, [receiver], self.handle)

    def handle(self, event: LeaseInput) -> None:
        for command in self.leases.handle(event, time.monotonic()):
            match command:
                case SendToPrefill(peer, message):
                    self.handoffs.send(peer, message)
                case CopyPieces():
                    self.handoffs.copy(command)
                case EnqueueReserve(key, tokens, salt, _):
                    fresh = self.blocks.allocate(PROMPT_BLOCKS)
                    assert fresh is not None
                    self.handle(Opened(key))
                    hashes = block_hashes(tokens, self.layout.block_size, salt)
                    self.handle(Granted(key, fresh, 0, hashes))
                case StartSequence():
                    self.blocks.release(command.block_ids)


async def serve(layout: KVLayout) -> None:
    decode = Decode(layout)
    server = grpc.aio.server()
    handoff_pb2_grpc.add_HandoffServicer_to_server(decode.handoffs, server)
    print(server.add_insecure_port(f"{HOST}:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    await decode.handoffs.close()
    (edge,) = decode.handoffs.edge_counters
    print(edge.seconds / edge.blocks * PROMPT_BLOCKS, flush=True)


# P's process


async def measure(name: str, runs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--decode", name]
    decode = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert decode.stdin is not None
    assert decode.stdout is not None
    layout = LAYOUTS[name]
    pool = KVPool.create(layout, NUM_BLOCKS, "cpu")
    sender = LocalRankSender(sending_pool(pool), layout, ONE_RANK, 0, ["shm"], HOST)
    heard: asyncio.Queue[ToPrefill] = asyncio.Queue()
    session = PrefillSession(
        f"{HOST}:{int(decode.stdout.readline())}",
        DECODE_EPOCH,
        identity("P", 22, layout),
        [sender],
        stream="to D",
        blocks_per_announcement=max(1, (8 << 20) // layout.block_bytes),
        on_message=heard.put_nowait,
        on_lost=lambda cause, detail: print(cause, detail, file=sys.stderr),
    )
    times = [await hand_over(session, heard, number) for number in range(WARM_UP + runs)]
    await session.close()
    sender.close()
    decode.stdin.close()
    transfer = float(decode.stdout.readline()) + describing(pool)
    decode.wait()
    pool.close()
    return summary(times[WARM_UP:], transfer)


async def hand_over(
    session: PrefillSession, heard: asyncio.Queue[ToPrefill], number: int
) -> tuple[float, float]:
    """Seconds from reserve to ticket, and from the end of the prefill to committed."""
    key = AttemptKey(RequestKey("default", f"r{number}"), 1)
    tokens = np.arange(PROMPT_BLOCKS * 16, dtype=np.int32)
    started = time.perf_counter()
    session.send(Reserve(key, tokens, 0, SamplingParams(8)))
    ticket = await heard.get()
    assert isinstance(ticket, Ticket)
    granted = time.perf_counter()
    ids = tuple(range(PROMPT_BLOCKS))
    session.send(Announcement(key, ticket.lease_id, 0, ids, (0,) * PROMPT_BLOCKS))
    session.send(Commit(key, ticket.lease_id, (SampledToken(42),), 0))
    while not isinstance(await heard.get(), Committed):
        pass
    return granted - started, time.perf_counter() - granted


def describing(pool: KVPool) -> float:
    """Seconds that P's checksums take, alone."""
    assert pool.block_bytes_view is not None
    runs = [np.array([[0, pool.layout.block_bytes]])]
    times = []
    for _ in range(20):
        started = time.perf_counter()
        checksum_parts(pool.block_bytes_view, range(PROMPT_BLOCKS), runs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def summary(times: list[tuple[float, float]], transfer: float) -> dict[str, float]:
    ending = statistics.median(end for _, end in times)
    seconds = {
        "reserve → ticket": statistics.median(reserve for reserve, _ in times),
        "end of prefill → committed": ending,
        "together": statistics.median(map(sum, times)),
        "transfer": transfer,
        "beyond the transfer": ending - transfer,
    }
    return {name: 1e3 * value for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--decode", choices=LAYOUTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        asyncio.run(serve(LAYOUTS[arguments.decode]))
        return
    rows = {name: asyncio.run(measure(name, arguments.runs)) for name in LAYOUTS}
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "milliseconds": rows}))
        return
    for name, row in rows.items():
        print(name)
        for column, value in row.items():
            print(f"  {column:28} {value:8.3f} ms")


if __name__ == "__main__":
    main()
