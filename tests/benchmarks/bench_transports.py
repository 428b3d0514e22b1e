"""What each KV transport costs between two processes of one host, beside what the machine can do.

    python tests/benchmarks/bench_transports.py [--runs 20]

P is a process of its own, as in a cluster. Blocks are those of SmolLM2-135M in bfloat16 (368,640
bytes), in random places of both pools: 64 of them (a prompt of 1,024 tokens) and 728 (268 MB).
Checksums are verified, as always. Floors of the same run: one thread's copy and checksum of the
same blocks, and one plain socket that sends as many bytes without verifying any. Prints one JSON
object; times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from core.handoff import Piece
from core.kv_layout import KVLayout
from core.lease_events import PieceCopy
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.handshake import WorkerIdentity, hello
from kv_transfer.offers import PoolOffers
from kv_transfer.selection import open_source
from kv_transfer.transport import TRANSPORTS, HostPool, PieceSource, checksum, describe_pieces

LAYOUT = KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_size=16, dtype="bfloat16")
SIZES = (64, 728)
HOST = "127.0.0.1"


def main() -> int:
    options = parse_arguments()
    if options.prefill:
        return run_prefill()
    prefill = subprocess.Popen(
        [sys.executable, __file__, "--prefill"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert prefill.stdout is not None
    hello_line, pieces_line, port_line = (prefill.stdout.readline() for _ in range(3))
    offered = pb.Hello.FromString(base64.b64decode(hello_line))
    announced = pb.Announce.FromString(base64.b64decode(pieces_line))
    pieces = [Piece(p.block_id, p.generation, p.checksum) for p in announced.pieces]
    destination = np.ones((max(SIZES), LAYOUT.block_bytes), np.uint8)
    try:
        result = measure(offered, pieces, destination, int(port_line), options.runs)
    finally:
        prefill.communicate()
    print(json.dumps(result, indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prefill", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_prefill() -> int:
    """The other process: a pool of random bytes, offered until standard input ends."""
    from engine.kv_pool import KVPool

    pool = KVPool.create(LAYOUT, max(SIZES), "cpu")
    assert pool.fd is not None
    assert pool.block_bytes_view is not None
    blocks = pool.block_bytes_view
    blocks[:] = np.random.default_rng(0).integers(0, 256, blocks.shape, dtype=np.uint8)
    offers = PoolOffers(HostPool(pool.fd, pool.nonce, blocks, pool.generations), TRANSPORTS, HOST)
    identity = WorkerIdentity("P", epoch=1, model_hash=1, layout=LAYOUT)
    order = np.random.default_rng(1).permutation(len(blocks)).tolist()
    pieces = [
        pb.Piece(block_id=p.block_id, generation=p.generation, checksum=p.checksum)
        for p in describe_pieces(blocks, order, [0] * len(order))
    ]
    plain = socket.create_server((HOST, 0))
    threading.Thread(target=serve_plain, args=(plain, blocks), daemon=True).start()
    for message in (hello(identity, 1, offers.new_offer()), pb.Announce(pieces=pieces)):
        print(base64.b64encode(message.SerializeToString()).decode(), flush=True)
    print(plain.getsockname()[1], flush=True)
    sys.stdin.read()
    offers.close()
    pool.close()
    return 0


def serve_plain(listener: socket.socket, blocks: np.ndarray) -> None:
    """The floor: four bytes say how many blocks to send."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while asked := connection.recv(4):
        connection.sendall(blocks[: int.from_bytes(asked, "little")].reshape(-1).data)


def measure(
    offered: pb.Hello, pieces: list[Piece], destination: np.ndarray, port: int, runs: int
) -> dict[str, object]:
    places = np.random.default_rng(2).permutation(len(destination)).tolist()
    copies = [
        PieceCopy(i, piece, place)
        for i, (piece, place) in enumerate(zip(pieces, places, strict=True))
    ]
    sources = {name: open_source(offered, [name], destination).source for name in TRANSPORTS}
    plain = socket.create_connection((HOST, port))
    result: dict[str, object] = {"block_bytes": LAYOUT.block_bytes, "runs": runs}
    for size in SIZES:
        ways = {name: copy_with(source, copies[:size]) for name, source in sources.items()}
        ways["floor: copy and checksum"] = copy_floor(destination, places[:size])
        ways["floor: plain socket"] = socket_floor(plain, destination[:size])
        result[f"{size} blocks, {size * LAYOUT.block_bytes / 1e6:.1f} MB"] = interleaved(ways, runs)
    for source in sources.values():
        source.close()
    plain.close()
    return result


def copy_with(source: PieceSource, copies: list[PieceCopy]) -> Callable[[], None]:
    def run() -> None:
        assert len(source.copy(copies).good) == len(copies)

    return run


def copy_floor(destination: np.ndarray, places: list[int]) -> Callable[[], None]:
    source = np.ones_like(destination)
    order = np.random.default_rng(1).permutation(len(source))[: len(places)].tolist()

    def run() -> None:
        for block, place in zip(order, places, strict=True):
            destination[place] = source[block]
            checksum(destination[place])

    return run


def socket_floor(connection: socket.socket, destination: np.ndarray) -> Callable[[], None]:
    def run() -> None:
        connection.sendall(len(destination).to_bytes(4, "little"))
        view = destination.reshape(-1).data
        while view.nbytes:
            view = view[connection.recv_into(view) :]

    return run


def interleaved(ways: dict[str, Callable[[], None]], runs: int) -> dict[str, float]:
    """Medians in milliseconds. In turn, so that what disturbs the machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs + 2):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: round(statistics.median(values[2:]), 2) for name, values in times.items()}


if __name__ == "__main__":
    sys.exit(main())
