"""Workers without an engine behind the real protocols: a process to measure a router with.

    python tests/benchmarks/fake_fleet.py --prefill 2 --decode 4

Registry and streams are the production's own (`cluster.registry`, `worker.router_streams`), so each
worker sends one Step message per step and router, tells what it would cache, and frees it again.
An idle worker begins its first step at once. Prompts cost no time; P hands over to D by a call.
Prints one JSON line with the registry and the workers; each line of stdin is the seconds of a step
from then on. Does not cover: GetStats, transfers, sampling.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import uvloop

from cluster.plan import Slot
from cluster.pool_messages import Member, MemberState
from cluster.registry import Registry
from core.block_hash import HashArray, block_hashes
from core.cache_events import NO_HASHES, NO_PARENT, CacheChange, CacheLog, StoredBlocks
from core.request import AttemptKey
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.registry_pb2_grpc import add_RegistryServicer_to_server
from crossdock.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from wire.attempts import key_from_wire, tokens_from_wire
from wire.cache_events import change_to_wire
from worker.router_streams import RouterStreams

BLOCK_SIZE = 16
NUM_BLOCKS = 1 << 16
# What every token says, so that clients can count them however they are put together.
WORD = " word"
_TOKEN = 1234


@dataclass(slots=True)
class Answer:
    key: pb.AttemptKey
    left: int
    is_new: bool = True


class FakeWorker(WorkerServicer):
    """``step_s``: seconds from one step to the next. Answers as many tokens as were asked for."""

    step_s = 0.01

    def __init__(self, fleet: Fleet, slot: Slot) -> None:
        self.name, self.role = slot.name, slot.role_name
        self._fleet = fleet
        self._streams = RouterStreams(self)
        self._log = CacheLog()
        self._cached: deque[HashArray] = deque()
        self._ends: set[int] = set()
        self._num_cached = 0
        self._stored: list[HashArray] = []
        self._opened: dict[AttemptKey, Answer] = {}
        # Prompts that were here before their Open.
        self._early: dict[AttemptKey, tuple[bytes, int]] = {}
        self._running: dict[AttemptKey, Answer] = {}
        self._prefills: list[pb.Prefill] = []
        self._work = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def Attach(
        self, request_iterator: AsyncIterator[pb.RouterMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        async for message in self._streams.attach(request_iterator):
            yield message

    # What routers say

    def greet(self, attach: pb.Attach) -> Sequence[pb.WorkerMessage]:
        welcome = pb.Welcome(
            worker=self.name,
            epoch=1,
            role=self.role,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=1024,
            cache_events=True,
        )
        events = [pb.WorkerMessage(cache=change) for change in self.missed_changes(0)]
        return [pb.WorkerMessage(welcome=welcome), *events]

    def missed_changes(self, after: int) -> Sequence[pb.CacheEvents]:
        changes = self._log.since(after)
        if changes is None:
            held = [self._chain(hashes) for hashes in self._cached]
            hashes, parents = (np.concatenate(parts) for parts in zip(*held, strict=True))
            stored = StoredBlocks.of(hashes, parents)
            changes = [CacheChange(self._log.sequence, stored, cleared=True)]
        return [change_to_wire(1, change) for change in changes]

    def on_router_message(self, message: pb.RouterMessage) -> None:
        match message.WhichOneof("message"):
            case "open":
                self._open(message.open)
            case "prefill":
                self._prefills.append(message.prefill)
                self._work.set()
            case "abort":
                key = key_from_wire(message.abort.key)
                self._opened.pop(key, None)
                self._running.pop(key, None)
                self._streams.forget(key)

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None:
        for key in attempts:
            self._opened.pop(key, None)
            self._running.pop(key, None)

    def _open(self, opened: pb.Open) -> None:
        key = key_from_wire(opened.key)
        self._opened[key] = Answer(opened.key, opened.sampling.max_tokens)
        if opened.mode == pb.Open.LOCAL:
            self.commit(key, opened.token_ids, opened.salt)
        elif early := self._early.pop(key, None):
            self.commit(key, *early)

    def commit(self, key: AttemptKey, token_ids: bytes, salt: int) -> None:
        """The prompt is here: its answer begins with the next step."""
        answer = self._opened.pop(key, None)
        if answer is None:
            self._early[key] = token_ids, salt
            return
        self._running[key] = answer
        self._store(token_ids, salt)
        self._work.set()

    # What it does

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await self._work.wait()
            due = now()
            while self._running or self._prefills:
                self._step()
                due = max(due + self.step_s, now())
                if self._running:
                    await asyncio.sleep(due - now())
            self._work.clear()

    def _step(self) -> None:
        prefills, self._prefills = self._prefills, []
        for prefill in prefills:
            key = key_from_wire(prefill.key)
            self._store(prefill.token_ids, prefill.salt)
            self._streams.forget(key)
            self._fleet.commit(prefill.decode_worker, key, prefill.token_ids, prefill.salt)
        for key, answer in list(self._running.items()):
            self._token(key, answer)
        changed = self._cache_changes()
        load = pb.Load(
            running=len(self._running),
            waiting=len(self._opened),
            free_blocks=NUM_BLOCKS - 8 * len(self._running),
        )
        self._streams.send_step(load, self._log.sequence, changed)

    def _token(self, key: AttemptKey, answer: Answer) -> None:
        was_new, answer.is_new = answer.is_new, False
        if answer.left > 1 and not was_new and self._streams.go_on(key, 0, _TOKEN, WORD):
            answer.left -= 1
            return
        output = self._streams.new_output(key)
        output.key.CopyFrom(answer.key)
        output.token_ids.append(_TOKEN)
        output.text = WORD
        answer.left -= 1
        if not answer.left:
            output.finish_reason = "length"
            del self._running[key]
            self._streams.forget(key)

    def _store(self, token_ids: bytes, salt: int) -> None:
        hashes = block_hashes(tokens_from_wire(token_ids), BLOCK_SIZE, salt)
        if len(hashes) and (end := int(hashes[-1])) not in self._ends:
            self._ends.add(end)
            self._stored.append(hashes)

    def _cache_changes(self) -> pb.CacheEvents | None:
        """Of one step: whole prompts, of which the oldest go."""
        if not self._stored:
            return None
        chains = [self._chain(hashes) for hashes in self._stored]
        self._cached += self._stored
        self._num_cached += sum(map(len, self._stored))
        self._stored = []
        removed = [NO_HASHES]
        while self._num_cached > NUM_BLOCKS:
            removed.append(self._cached.popleft())
            self._num_cached -= len(removed[-1])
            self._ends.discard(int(removed[-1][-1]))
        hashes, parents = (np.concatenate(parts) for parts in zip(*chains, strict=True))
        change = self._log.add(StoredBlocks.of(hashes, parents), np.concatenate(removed))
        return change_to_wire(1, change)

    @staticmethod
    def _chain(hashes: HashArray) -> tuple[HashArray, HashArray]:
        """With the parent of each block."""
        return hashes, np.concatenate([np.array([NO_PARENT], dtype=np.uint64), hashes[:-1]])


class Fleet:
    """All workers of the process. Without ``prefill`` they are mixed ones."""

    def __init__(self, prefill: int, decode: int) -> None:
        role = "decode" if prefill else "mixed"
        slots = [Slot("prefill", number, "prefill") for number in range(prefill)]
        slots += [Slot("decode", number, role) for number in range(decode)]
        self._slots = slots
        self._workers = {slot.name: FakeWorker(self, slot) for slot in slots}

    def commit(self, worker: str, key: AttemptKey, token_ids: bytes, salt: int) -> None:
        self._workers[worker].commit(key, token_ids, salt)

    async def start(self) -> dict[str, object]:
        """Listens; gives the addresses of the registry and of each worker."""
        registry = Registry()
        address = await serve(registry, add_RegistryServicer_to_server)
        endpoints = {
            slot.name: await serve(self._workers[slot.name], add_WorkerServicer_to_server)
            for slot in self._slots
        }
        registry.publish(
            [
                Member(slot, MemberState.READY, 0.0, endpoint=endpoints[slot.name], epoch=1)
                for slot in self._slots
            ]
        )
        return {"registry": address, "workers": endpoints}


async def serve(servicer: Any, add: Any) -> str:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    SERVERS.append(server)
    return f"127.0.0.1:{port}"


SERVERS: list[grpc.aio.Server] = []


async def run(prefill: int, decode: int) -> None:
    print(json.dumps(await Fleet(prefill, decode).start()), flush=True)
    # Until whoever started it closes the pipe.
    while line := await asyncio.to_thread(sys.stdin.readline):
        FakeWorker.step_s = float(line)
    await asyncio.gather(*(server.stop(None) for server in SERVERS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=4)
    options = parser.parse_args()
    uvloop.run(run(options.prefill, options.decode))


if __name__ == "__main__":
    main()
