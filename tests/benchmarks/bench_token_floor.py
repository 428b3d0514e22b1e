"""The least that a streamed token can cost a router: one send, and its share of a worker's message.

    PYTHONPATH=.:protos python tests/benchmarks/bench_token_floor.py [--sequences 32]
        [--rates 10000 50000] [--router-core 1 --load-core 0]

Sends: an event of the usual size to each client of a step by ``socket.send``, the steps of four
workers in turns as `bench_router` has them; another process only reads. Messages: further tokens of
four workers, read and parsed with nothing done about them. CPU of the process that a router would
be, user and system. Prints one JSON object; times in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio
import uvloop

from crossdock.v1 import worker_pb2 as pb
from wire.grpc_streams import read

WORKERS = 4
# As long as an event of /v1/completions with a word.
EVENT = b"x" * 240
_ATTACH = "Attach"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=32, help="of each message of a worker")
    parser.add_argument("--rates", type=float, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--router-core", type=int, help="for what a router would do")
    parser.add_argument("--load-core", type=int, help="for the other side")
    options = parser.parse_args()
    print(json.dumps([floor(options, rate) for rate in options.rates], indent=2))
    return 0


def floor(options: argparse.Namespace, rate: float) -> dict[str, float]:
    step_s = options.sequences / rate
    with beside(options, read_all, WORKERS * options.sequences) as port:
        send = send_us(options, port, step_s)
    with beside(options, serve, options.sequences, WORKERS * step_s) as port:
        message = uvloop.run(message_us(options, port))
    return {
        "tokens_per_s": rate,
        "send_us": round(send, 2),
        "message_us": round(message, 1),
        "floor_us": round(send + message / options.sequences, 2),
    }


@contextmanager
def beside(options: argparse.Namespace, work: Callable[..., None], *args: object) -> Iterator[int]:
    """``work`` in another process on the other core. Gives the port that it listens on."""
    pin(options.load_core)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(there, *args))
    process.start()
    pin(options.router_core)
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


# Sends


def read_all(port: Connection, clients: int) -> None:
    """All that comes on so many connections."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=clients)
    port.send(listening.getsockname()[1])
    connections = {c.fileno(): c for c in (listening.accept()[0] for _ in range(clients))}
    poll = select.epoll()
    for number in connections:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if not connections[number].recv(1 << 16):
                return


def send_us(options: argparse.Namespace, port: int, step_s: float) -> float:
    clients = [connected(port) for _ in range(WORKERS * options.sequences)]
    steps = int(options.seconds / step_s)
    spent, due = 0.0, time.perf_counter()
    for step in range(steps):
        first = step % WORKERS * options.sequences
        began = time.thread_time()
        for client in clients[first : first + options.sequences]:
            client.send(EVENT)
        spent += time.thread_time() - began
        due += step_s
        time.sleep(max(0.0, due - time.perf_counter()))
    for client in clients:
        client.close()
    return 1e6 * spent / (steps * options.sequences)


def connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


# Messages


def serve(port: Connection, sequences: int, step_s: float) -> None:
    uvloop.run(serve_steps(port, step(sequences).SerializeToString(), step_s))


def step(sequences: int) -> pb.WorkerMessage:
    further = pb.FurtherTokens(
        answers=range(5000, 5000 + sequences),
        token_ids=[1234] * sequences,
        texts=[" word"] * sequences,
    )
    load = pb.Load(running=sequences, free_blocks=60_000)
    return pb.WorkerMessage(step=pb.Step(further=further, load=load, cache_sequence=5))


async def serve_steps(port: Connection, message: bytes, step_s: float) -> None:
    """One ``message`` each ``step_s`` seconds on each stream."""

    async def attach(messages: AsyncIterator[bytes], context: Any) -> None:
        due = time.perf_counter()
        while True:
            await context.write(message)
            due += step_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    handlers = {_ATTACH: grpc.stream_stream_rpc_method_handler(attach)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Worker", handlers),))
    port.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


async def message_us(options: argparse.Namespace, port: int) -> float:
    heard = [0] * WORKERS
    links = [asyncio.create_task(listen(port, heard, number)) for number in range(WORKERS)]
    await asyncio.sleep(1.0)
    began, cpu = sum(heard), time.process_time()
    await asyncio.sleep(options.seconds)
    spent, messages = time.process_time() - cpu, sum(heard) - began
    for link in links:
        link.cancel()
    await asyncio.gather(*links, return_exceptions=True)
    return 1e6 * spent / messages


async def listen(port: int, heard: list[int], number: int) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own_connection) as channel:
        parse = pb.WorkerMessage.FromString
        call = channel.stream_stream(f"/Worker/{_ATTACH}", response_deserializer=parse)()
        await call.write(b"")
        while await read(call) is not None:
            heard[number] += 1


if __name__ == "__main__":
    sys.exit(main())
