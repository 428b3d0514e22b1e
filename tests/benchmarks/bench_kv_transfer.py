"""kv_transfer: what each transport costs between two processes of one host, beside its floors.

    python tests/benchmarks/bench_kv_transfer.py [--runs 30] [--json]

P is a process of its own, as in a cluster. Blocks are those of SmolLM2-135M in bfloat16 (368,640
bytes), in random places of both pools, which are memory as workers have it: 64 of them (a prompt of
1,024 tokens, 23.6 MB) and 728 (268 MB). Checksums are verified unless a row says otherwise.
Floors, in the same run: a memcpy of the same block ids by one core (block by block, as numpy does
it), a bare loopback socket (sendall and recv_into of each block, nothing verified), and gloo's send
and recv of one tensor of that size.

Rows of unequal splits move one edge: a third of the heads (3×1 → 1×1) or a fifth of the layers
(1×1 → 1×5) of the same blocks; their floors are a memcpy of the same pieces and the same share of
the bare socket's time. Times are medians in milliseconds, all ways in turn, so that what disturbs
the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from core.handoff import Piece
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from core.shards import ONE_RANK, ParallelShape
from core.transfer_plan import EdgePlan, make_plan
from crossdock.v1 import handoff_pb2 as pb
from engine.kv_pool import KVPool
from kv_transfer.regions import PartCopier, checksum_parts
from kv_transfer.shm import PoolExporter, SharedMemorySource
from kv_transfer.tcp_server import TcpServer
from kv_transfer.tcp_source import TcpSource
from kv_transfer.token_listener import TokenAddress
from kv_transfer.transport import TRANSPORTS, EdgeTarget, PieceSource

MODEL = KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")
SIZES = (64, 728)
HOST = "127.0.0.1"
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Split:
    """One edge between two splits: a pool of P's rank is made for each."""

    name: str
    source: ParallelShape
    destination: ParallelShape

    @property
    def edge(self) -> EdgePlan:
        return make_plan(MODEL, self.source, self.destination)[0]


SPLITS = (
    Split("1×1 → 1×1", ONE_RANK, ONE_RANK),
    Split("3×1 → 1×1", ParallelShape(3, 1), ONE_RANK),
    Split("1×1 → 1×5", ONE_RANK, ParallelShape(1, 5)),
)


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        meeting = options.prefill or f"{folder}/gloo"
        if options.prefill:
            return run_prefill(meeting)
        command = [sys.executable, __file__, "--prefill", meeting]
        prefill = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            result = measure(prefill, meeting, options.runs)
        finally:
            prefill.communicate()
    print(json.dumps(result, indent=2) if options.json else table(result))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--prefill", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


# P's process


def run_prefill(meeting: str) -> int:
    """Pools of random bytes, offered until standard input ends."""
    with contextlib.ExitStack() as stack:
        for split in SPLITS:
            offer, pieces = stack.enter_context(offered(split))
            say(offer.SerializeToString())
            say(pb.Announce(pieces=pieces).SerializeToString())
        plain = socket.create_server((HOST, 0))
        say(str(plain.getsockname()[1]).encode())
        threading.Thread(target=serve_plain, args=(plain,), daemon=True).start()
        threading.Thread(target=serve_gloo, args=(meeting,), daemon=True).start()
        sys.stdin.read()
    # Without waiting for a gloo thread that waits for a peer that has gone.
    sys.stdout.flush()
    os._exit(0)


@contextlib.contextmanager
def offered(split: Split) -> Iterator[tuple[pb.RankOffer, list[pb.Piece]]]:
    pool = KVPool.create(split.edge.source_layout, max(SIZES), "cpu")
    assert pool.fd is not None
    assert pool.block_bytes_view is not None
    blocks = pool.block_bytes_view
    blocks[:] = np.random.default_rng(0).integers(0, 256, blocks.shape, dtype=np.uint8)
    exporter, server = PoolExporter(pool.fd), TcpServer(HOST, blocks, pool.generations)
    order = np.random.default_rng(1).permutation(len(blocks)).tolist()
    checksums = checksum_parts(blocks, order, [split.edge.source_runs])
    pieces = [
        pb.Piece(block_id=block_id, checksums=of_edges)
        for block_id, of_edges in zip(order, checksums, strict=True)
    ]
    yield (
        pb.RankOffer(
            transports=TRANSPORTS,
            shm=pb.ShmOffer(
                socket_path=exporter.socket_path, nonce=pool.nonce, num_blocks=len(blocks)
            ),
            tcp=pb.TcpOffer(host=HOST, port=server.port, token=server.invite()),
        ),
        pieces,
    )
    server.close()
    exporter.close()


def say(message: bytes) -> None:
    print(base64.b64encode(message).decode(), flush=True)


def serve_plain(listener: socket.socket) -> None:
    """The floor: four bytes say how many blocks to send."""
    blocks = np.random.default_rng(3).integers(0, 256, (max(SIZES), MODEL.block_bytes), np.uint8)
    order = np.random.default_rng(1).permutation(len(blocks))
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while asked := connection.recv(4):
        for block in order[: int.from_bytes(asked, "little")]:
            connection.sendall(blocks[block].data)


def gloo(meeting: str, rank: int) -> dist.ProcessGroup:
    store = dist.FileStore(meeting, 2)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=HOST)]
    return dist.ProcessGroupGloo(store, rank, 2, options)


def serve_gloo(meeting: str) -> None:
    group = gloo(meeting, 0)
    tensor = torch.ones(max(SIZES), MODEL.block_bytes, dtype=torch.uint8)
    asked = torch.zeros(1, dtype=torch.int64)
    with contextlib.suppress(RuntimeError):
        while True:
            group.recv([asked], 1, 0).wait()
            group.send([tensor[: int(asked)]], 1, 1).wait()


# D's process


def measure(prefill: subprocess.Popen[bytes], meeting: str, runs: int) -> dict[str, object]:
    assert prefill.stdout is not None
    hear = lambda: base64.b64decode(prefill.stdout.readline())  # noqa: E731
    edges = []
    for split in SPLITS:
        offer, announced = pb.RankOffer.FromString(hear()), pb.Announce.FromString(hear())
        edges.append(Edge(split, offer, announced))
    plain = socket.create_connection((HOST, int(hear())))
    group = gloo(meeting, 1)
    rows: dict[str, dict[str, float]] = {}
    for size in SIZES:
        ways: Ways = {
            "bare socket": bare_socket(plain, edges[0].target.blocks, size),
            "gloo send/recv": over_gloo(group, size),
        }
        for edge in edges:
            ways.update(edge.ways(size))
        rows[str(size)] = interleaved(ways, runs)
    for edge in edges:
        edge.close()
    plain.close()
    return {"block_bytes": MODEL.block_bytes, "runs": runs, "milliseconds": rows}


class Edge:
    """D's end of one edge, once per way."""

    def __init__(self, split: Split, offer: pb.RankOffer, announced: pb.Announce) -> None:
        self.split = split
        plan = split.edge
        self.pools = [
            KVPool.create(layout, max(SIZES), "cpu")
            for layout in (plan.destination_layout, plan.source_layout)
        ]
        blocks, self.memory = (pool.block_bytes_view for pool in self.pools)
        assert blocks is not None
        self.target = EdgeTarget(blocks, plan, place=0)
        self.shm = {count: open_shm(offer, self.target, count) for count in (1, 2)}
        self.unverified = {
            count: open_shm(offer, self.target, count, Unverified) for count in (1, 2)
        }
        self.tcp = {streams: open_tcp(offer, self.target, streams) for streams in (1, 2)}
        places = np.random.default_rng(2).permutation(max(SIZES)).tolist()
        self.copies = [
            PieceCopy(i, Piece(p.block_id, p.generation, tuple(p.checksums)), place)
            for i, (p, place) in enumerate(zip(announced.pieces, places, strict=True))
        ]

    def ways(self, size: int) -> Ways:
        copies = self.copies[:size]
        name = self.split.name
        ways: Ways = {f"{name}: memcpy, one core": self.memcpy(copies)}
        unannounced = [replace(c, piece=replace(c.piece, checksums=(0,))) for c in copies]
        for threads, source in self.unverified.items():
            way = f"{name}: shm, {threads} thread(s), no checksum"
            ways[way] = copying(source, unannounced)
        for threads, source in self.shm.items():
            ways[f"{name}: shm, {threads} thread(s)"] = copying(source, copies)
        for streams, source in self.tcp.items():
            ways[f"{name}: tcp, {streams} stream(s)"] = copying(source, copies)
        return ways

    def memcpy(self, copies: list[PieceCopy]) -> Callable[[], None]:
        """Nothing but the bytes: no generation, no checksum."""
        assert self.memory is not None
        copier = PartCopier(self.memory, self.target.blocks, self.target.plan)

        def run() -> None:
            for item in copies:
                copier.copy(item.piece.block_id, item.destination)

        return run

    def close(self) -> None:
        for source in (*self.shm.values(), *self.unverified.values(), *self.tcp.values()):
            source.close()
        for pool in self.pools:
            pool.close()


class Unverified(PartCopier):
    """What a copy costs without its checksum; all pieces then announce 0."""

    def checksum(self, destination_id: int) -> int:
        return 0


def open_shm(
    offer: pb.RankOffer, target: EdgeTarget, threads: int, copier: type[PartCopier] = PartCopier
) -> PieceSource:
    layout = PoolLayout(offer.shm.num_blocks, target.plan.source_layout.block_bytes)
    path, nonce = offer.shm.socket_path, offer.shm.nonce
    with mock.patch("kv_transfer.shm.PartCopier", copier):
        return SharedMemorySource(path, nonce, layout, target, threads)


def open_tcp(offer: pb.RankOffer, target: EdgeTarget, streams: int) -> PieceSource:
    address = TokenAddress(offer.tcp.host, offer.tcp.port, offer.tcp.token)
    return TcpSource(address, target, streams=streams)


def copying(source: PieceSource, copies: list[PieceCopy]) -> Callable[[], None]:
    def run() -> None:
        assert len(source.copy(copies).good) == len(copies)

    return run


def bare_socket(connection: socket.socket, blocks: np.ndarray, size: int) -> Callable[[], None]:
    places = np.random.default_rng(2).permutation(len(blocks))[:size]

    def run() -> None:
        connection.sendall(size.to_bytes(4, "little"))
        for place in places:
            view = blocks[place].data
            while view.nbytes:
                view = view[connection.recv_into(view) :]

    return run


def over_gloo(group: dist.ProcessGroup, size: int) -> Callable[[], None]:
    tensor = torch.ones(size, MODEL.block_bytes, dtype=torch.uint8)

    def run() -> None:
        group.send([torch.tensor([size])], 0, 0).wait()
        group.recv([tensor], 0, 1).wait()

    return run


def interleaved(ways: Ways, runs: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 2):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: round(statistics.median(values[2:]), 2) for name, values in times.items()}


def table(result: dict[str, object]) -> str:
    """Each row beside what a memcpy of the same pieces and a bare socket take."""
    lines = []
    milliseconds: dict[str, dict[str, float]] = result["milliseconds"]  # type: ignore[assignment]
    for size, rows in milliseconds.items():
        total = int(size) * MODEL.block_bytes / 1e6
        lines.append(f"\n{size} blocks of SmolLM2, {total:.1f} MB (parts: less)")
        lines.append(f"{'':44}{'ms':>8}{'of memcpy':>11}{'of socket':>11}")
        for name, took in rows.items():
            split = name.partition(":")[0]
            floor = rows.get(f"{split}: memcpy, one core")
            of_memcpy = f"{floor / took:>11.2f}" if floor else f"{'':>11}"
            share = share_of_bytes(split)
            lines.append(
                f"{name:44}{took:>8.2f}{of_memcpy}{share * rows['bare socket'] / took:>11.2f}"
            )
    return "\n".join(lines)


def share_of_bytes(name: str) -> float:
    """Of a whole block, on the edge of this split; 1 for what is no split."""
    edges = {split.name: split.edge for split in SPLITS}
    return edges[name].block_bytes / MODEL.block_bytes if name in edges else 1.0


if __name__ == "__main__":
    sys.exit(main())
