"""The admin door over real gRPC: what it says of ready, starting and unreachable workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from cluster.admin import ClusterAdmin, ClusterView
from cluster.cli.output import plain
from cluster.plan import Slot
from cluster.pool_state import Member, MemberState
from crossdock.v1 import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """Answers with its numbers; ``silent`` never answers, ``broken`` fails validation."""

    def __init__(self, silent: bool = False, broken: bool = False) -> None:
        self.silent, self.broken = silent, broken

    async def GetStats(self, request, context) -> worker_pb2.WorkerStats:
        if self.silent:
            await asyncio.Event().wait()
        if request.validate and self.broken:
            await context.abort(grpc.StatusCode.INTERNAL, "free list is not unique")
        edge = worker_pb2.EdgeStats(
            peer="prefill-0", transport="tcp", bytes=2**40, blocks=3, detail="shm: out of reach"
        )
        return worker_pb2.WorkerStats(worker="decode-0", total_blocks=8, edges=[edge])


@contextlib.asynccontextmanager
async def serving(add, servicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def status(*members: Member, validate: bool = False) -> dict:
    view = ClusterView("tiny", "127.0.0.1:1", "127.0.0.1:2", members, 1, 1, restarts=4)
    admin = ClusterAdmin(lambda: view, timeout_s=0.5)
    async with (
        serving(admin_pb2_grpc.add_ClusterAdminServicer_to_server, admin) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = admin_pb2_grpc.ClusterAdminStub(channel)
        return plain(await stub.GetStatus(admin_pb2.GetStatusRequest(validate=validate)))


def ready(endpoint: str) -> Member:
    return Member(D0, MemberState.READY, 0.0, endpoint=endpoint, epoch=5)


def serve_worker(**how: bool):
    return serving(worker_pb2_grpc.add_WorkerServicer_to_server, FakeWorker(**how))


async def test_a_ready_worker_is_shown_with_its_numbers() -> None:
    async with serve_worker() as endpoint:
        found = await status(ready(endpoint))
    [worker] = found["workers"]
    assert (worker["state"], worker["stats"]["total_blocks"]) == ("ready", 8)
    assert worker["stats"]["edges"][0]["bytes"] == 2**40
    assert (found["model"], found["restarts"], found["prefill_wanted"]) == ("tiny", 4, 1)


async def test_a_lost_worker_is_starting_and_says_why() -> None:
    found = await status(Member(P0, MemberState.LOST, 0.0, detail="killed; starts again in 2 s"))
    assert found["workers"][0]["state"] == "starting"
    assert found["workers"][0]["detail"] == "killed; starts again in 2 s"


async def test_a_worker_that_does_not_answer_is_unreachable() -> None:
    async with serve_worker(silent=True) as endpoint:
        [worker] = (await status(ready(endpoint)))["workers"]
    assert worker["state"] == "unreachable"
    assert worker["detail"].startswith("DEADLINE_EXCEEDED")


async def test_a_broken_invariant_shows_when_workers_validate() -> None:
    async with serve_worker(broken=True) as endpoint:
        [fine] = (await status(ready(endpoint)))["workers"]
        [broken] = (await status(ready(endpoint), validate=True))["workers"]
    assert fine["state"] == "ready"
    assert broken["detail"] == "INTERNAL: free list is not unique"


async def test_the_status_table_names_workers_and_what_moved(capsys) -> None:
    from cluster.cli.status import _print

    async with serve_worker() as endpoint:
        _print(await status(ready(endpoint), Member(P0, MemberState.STARTING, 0.0)))
    shown = capsys.readouterr().out
    assert "pools 1P:1D  restarts 4" in shown
    assert "prefill-0  decode-0  tcp        3       1099511.6 MB  shm: out of reach" in shown
