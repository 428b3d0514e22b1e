"""What a request costs in the router's own code: its whole path by HTTP, in one process.

    PYTHONPATH=.:protos python tests/benchmarks/bench_request_path.py MODEL_FOLDER

The production's door, dispatcher and routing; in the place of each socket what would go through it
is handed over as bytes. A batch of requests comes at once, prompts are token ids, every one is
handed off, and all get their only token in one step of their workers. Prints microseconds of CPU
of a request: the 10th percentile, which others on the machine disturb least, and the median of all
batches. Does not cover: sockets and gRPC (`bench_router.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import uvloop
from aiohttp import web
from stream_load import Prompts, post_bytes

from core.block_hash import HashArray, block_hashes
from core.cache_events import NO_HASHES, NO_PARENT, CacheLog, StoredBlocks
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.registry_pb2 import WorkerRecord
from router.access_rules import AccessRules
from router.doors.http_access import access_middleware
from router.doors.http_errors import answer_errors
from router.doors.openai_door import OpenAIDoor
from router.flow.retries import RetryLimits
from router.intake.model_info import ModelInfo
from router.intake.prompt_reader import PromptReader
from router.intake.request_intake import RequestIntake
from router.main import spare_collector
from router.metrics.metrics import Metrics
from router.placement import Disaggregation, WorkerId
from router.requests.dispatcher import Dispatcher
from router.requests.read_tickets import ReadTickets
from router.routing.routing_rules import RoutingRules
from text.tokenizer import Tokenizer
from wire.attempts import tokens_from_wire
from wire.cache_events import change_to_wire

BLOCK_SIZE, NUM_BLOCKS, ADDRESS = 16, 1 << 16, "127.0.0.1:80"
# Turns of the event loop until everybody waits again.
TURNS = 5


class Connection(asyncio.Transport):
    """What a client's connection is to aiohttp. ``got``: all bytes of the answer."""

    def __init__(self, open_protocol: Callable[[], Any]) -> None:
        super().__init__()
        self.got = bytearray()
        self.protocol = open_protocol()
        self.protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.got += data

    def writelines(self, parts: Iterable[Any]) -> None:
        self.got += b"".join(parts)

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...


class Link:
    """In the place of a stream to a worker: what was sent waits in ``sent``."""

    endpoint, listed = ADDRESS, True

    def __init__(self) -> None:
        self.sent: list[pb.RouterMessage] = []

    def send(self, message: pb.RouterMessage) -> None:
        self.sent.append(message)

    def take(self) -> bytes:
        """All of it as it goes over the wire."""
        together, self.sent = pb.RouterMessage(), self.sent
        together.several.messages.extend(self.sent)
        self.sent = []
        return together.SerializeToString()


class Cache:
    """What one worker tells of its cache: all prompts that came."""

    def __init__(self) -> None:
        self._log = CacheLog()

    def step(self, outputs: list[pb.SequenceOutput], prompts: list[HashArray]) -> bytes:
        parents = [np.concatenate([np.uint64([NO_PARENT]), hashes[:-1]]) for hashes in prompts]
        stored = StoredBlocks.of(np.concatenate(prompts), np.concatenate(parents))
        change = self._log.add(stored, NO_HASHES)
        load = pb.Load(free_blocks=NUM_BLOCKS // 2)
        events = change_to_wire(1, change)
        step = pb.Step(outputs=outputs, load=load, cache=events, cache_sequence=change.sequence)
        return pb.WorkerMessage(step=step).SerializeToString()


class Fleet:
    """All workers of one router."""

    def __init__(self, prefill: int, decode: int) -> None:
        names = [("prefill", n) for n in range(prefill)] + [("decode", n) for n in range(decode)]
        self.roles = {WorkerId(f"{role}-{n}", 1): role for role, n in names}
        self.links = {worker: Link() for worker in self.roles}
        self._caches = {worker: Cache() for worker in self.roles}

    def attach(self, dispatcher: Dispatcher) -> None:
        news = dispatcher.workers
        records = [
            WorkerRecord(worker=w.name, epoch=1, role=r, endpoint=ADDRESS)
            for w, r in self.roles.items()
        ]
        news.on_listed(records)
        for worker, role in self.roles.items():
            size = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE, "max_num_seqs": 1024}
            welcome = pb.Welcome(worker=worker.name, epoch=1, role=role, cache_events=True, **size)
            news.on_attached(worker, welcome)

    def answer(self, written: dict[WorkerId, bytes]) -> dict[WorkerId, bytes]:
        """The steps in which all that was asked for is done."""
        outputs: dict[WorkerId, list[pb.SequenceOutput]] = defaultdict(list)
        prompts: dict[WorkerId, list[HashArray]] = defaultdict(list)
        for worker, raw in written.items():
            for message in pb.RouterMessage.FromString(raw).several.messages:
                if message.HasField("open"):
                    end = {"token_ids": [1], "text": " word", "finish_reason": "length"}
                    outputs[worker].append(pb.SequenceOutput(key=message.open.key, **end))
                else:
                    told = message.prefill
                    hashes = block_hashes(tokens_from_wire(told.token_ids), BLOCK_SIZE, told.salt)
                    prompts[worker].append(hashes)
                    prompts[WorkerId(told.decode_worker, 1)].append(hashes)
        return {w: self._caches[w].step(outputs[w], prompts[w]) for w in prompts}


def make_dispatcher(fleet: Fleet, metrics: Metrics) -> Dispatcher:
    dispatcher = Dispatcher(
        block_size=BLOCK_SIZE,
        open_link=lambda worker, endpoint, listener: fleet.links[worker],  # type: ignore[arg-type]
        rules=RoutingRules(Disaggregation.PREFER),
        metrics=metrics,
        random=Random(0),
        limits=RetryLimits(),
        access=AccessRules(),
        tickets=ReadTickets("router"),
    )
    fleet.attach(dispatcher)
    return dispatcher


async def open_door(dispatcher: Dispatcher, metrics: Metrics, folder: Path) -> web.AppRunner:
    model, tokenizer = ModelInfo.load(folder, "model", 8192), Tokenizer.load(folder)
    prompts = PromptReader(model, tokenizer, None)
    intake = RequestIntake(model, prompts, dispatcher, metrics, AccessRules())
    access = access_middleware(intake.tenant, lambda header: None)
    app = web.Application(middlewares=[answer_errors, access])
    app.add_routes(OpenAIDoor(intake, tokenizer.token_bytes, "0").routes())
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, auto_decompress=False)
    await runner.setup()
    return runner


async def batch_us(
    connections: list[Connection], requests: Iterator[bytes], fleet: Fleet, dispatcher: Dispatcher
) -> float:
    """CPU of one request of a batch; what workers and clients do is not counted."""
    for connection in connections:
        connection.got.clear()
    began = time.process_time()
    for connection in connections:
        connection.protocol.data_received(next(requests))
    await turns()
    written = {worker: link.take() for worker, link in fleet.links.items() if link.sent}
    taken = time.process_time() - began
    steps = fleet.answer(written)
    began = time.process_time()
    for worker, step in steps.items():
        dispatcher.workers.on_message(worker, pb.WorkerMessage.FromString(step))
    await turns()
    taken += time.process_time() - began
    assert all(c.got.endswith(b"0\r\n\r\n") and b" word" in c.got for c in connections)
    return 1e6 * taken / len(connections)


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def run(options: argparse.Namespace) -> None:
    fleet, metrics = Fleet(options.prefill, options.decode), Metrics()
    dispatcher = make_dispatcher(fleet, metrics)
    runner = await open_door(dispatcher, metrics, options.model)
    assert runner.server is not None
    connections = [Connection(runner.server) for _ in range(options.batch)]
    await turns()
    prompts = Prompts(128, 1, count=options.batch * options.batches)
    requests = iter([post_bytes(ADDRESS, body) for body in prompts.http()])
    spare_collector()
    times = [
        await batch_us(connections, requests, fleet, dispatcher) for _ in range(options.batches)
    ]
    warm = times[len(times) // 4 :]
    low, middle = np.percentile(warm, (10, 50))
    print(f"{low:.0f} µs of CPU a request at best, {middle:.0f} µs mostly")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model: its tokenizer and config")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="requests that come at once")
    parser.add_argument("--batches", type=int, default=400)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
