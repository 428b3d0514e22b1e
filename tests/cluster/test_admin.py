"""The admin door over real gRPC: what it says of ready, starting and unreachable workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from cluster.admin import ClusterAdmin, ClusterView
from cluster.cli.output import plain
from cluster.plan import Slot
from cluster.pool_messages import DrainWorker, FlipWorker, Member, MemberState, ScaleTo
from cluster.wanted import Wanted
from cluster.wishes import Wish
from core.errors import InvalidField, NotFound, Overloaded
from core.shards import ONE_RANK, ParallelShape
from crossdock.client.errors import ServerError, decode
from crossdock.v1 import admin_pb2, admin_pb2_grpc, registry_pb2, worker_pb2, worker_pb2_grpc

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """Answers with its numbers; ``silent`` never answers, ``broken`` fails validation, ``ranks``
    are so many, with an edge from rank 2 of its peer to its last one, too; ``busy`` ones of them
    tell nothing."""

    def __init__(
        self,
        silent: bool = False,
        broken: bool = False,
        ranks: int = 1,
        busy: tuple[int, ...] = (),
    ) -> None:
        self.silent, self.broken, self.ranks, self.busy = silent, broken, ranks, busy

    async def GetStats(self, request, context) -> worker_pb2.WorkerStats:
        if self.silent:
            await asyncio.Event().wait()
        if request.validate and self.broken:
            await context.abort(grpc.StatusCode.INTERNAL, "free list is not unique")
        edge = worker_pb2.EdgeStats(
            peer="prefill-0", transport="tcp", bytes=2**40, blocks=3, detail="shm: out of reach"
        )
        edges = [edge]
        if self.ranks > 1:
            edges.append(worker_pb2.EdgeStats())
            edges[-1].MergeFrom(edge)
            edges[-1].source_rank, edges[-1].destination_rank = 2, self.ranks - 1
        ranks = [
            worker_pb2.RankStats(rank=i, pid=70 + i, cores=[i])
            for i in range(self.ranks)
            if i not in self.busy
        ]
        return worker_pb2.WorkerStats(
            worker="decode-0", total_blocks=8, edges=edges, ranks=ranks, cores=[0]
        )


@contextlib.asynccontextmanager
async def serving(add, servicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def status(
    *members: Member, validate: bool = False, shapes: dict[str, ParallelShape] | None = None
) -> dict:
    async with admin_stub(FakeOperations(), *members, shapes=shapes) as stub:
        return plain(await stub.GetStatus(admin_pb2.GetStatusRequest(validate=validate)))


class FakeOperations:
    """Notes what is wished for; answers with ``error`` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.wishes: list[Wish] = []
        self.wanted = Wanted(1, 2)
        self.left = ("", 0.0)

    async def change(self, wish: Wish) -> None:
        self.wishes.append(wish)
        if self.error:
            raise self.error

    async def leave_node(self, address: str, limit_s: float) -> tuple[Slot, ...]:
        self.left = (address, limit_s)
        return (P0, D0)


@contextlib.asynccontextmanager
async def admin_stub(
    operations: FakeOperations | None,
    *members: Member,
    shapes: dict[str, ParallelShape] | None = None,
) -> AsyncIterator[admin_pb2_grpc.ClusterAdminStub]:
    view = ClusterView(
        model="tiny",
        grpc_address="127.0.0.1:1",
        http_address="127.0.0.1:2",
        members=members,
        shapes=shapes or {"prefill": ONE_RANK, "decode": ONE_RANK},
        wanted=Wanted(1, 1),
        restarts=4,
        settled=True,
        routers=[
            registry_pb2.RouterReport(
                router_id="router-1",
                grpc_address="127.0.0.1:1",
                store="redis://cache:6379/0",
                degraded="no answer within 0.05 s",
                peers=2,
            )
        ],
    )
    admin = ClusterAdmin(lambda: view, lambda: operations, timeout_s=0.5)
    async with (
        serving(admin_pb2_grpc.add_ClusterAdminServicer_to_server, admin) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield admin_pb2_grpc.ClusterAdminStub(channel)


async def error_of(call) -> ServerError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode(caught.value)


def ready(endpoint: str) -> Member:
    return Member(D0, MemberState.READY, 0.0, endpoint=endpoint, epoch=5)


def serve_worker(**how: int):
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
    assert "pools 1P:1D  used ? : ?  restarts 4" in shown
    assert "prefill-0  decode-0  tcp        3       1099511.6 MB  shm: out of reach" in shown


async def test_the_status_table_names_the_doors_that_there_are(capsys) -> None:
    """Routers that are processes of their own have theirs elsewhere."""
    from cluster.cli.status import _print

    found = await status() | {"grpc_address": "", "http_address": ""}
    _print(found)
    assert capsys.readouterr().out.splitlines()[0] == "model tiny"
    _print(found | {"grpc_address": "a:1", "http_address": "a:2", "doors_tls": True})
    assert capsys.readouterr().out.splitlines()[0] == "model tiny  grpc a:1  https a:2"


async def test_the_status_table_says_which_router_goes_by_what_it_knows_itself(capsys) -> None:
    from cluster.cli.status import _print

    _print(await status())
    [shown] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("router-1")]
    words = ["router-1", "127.0.0.1:1", "redis://cache:6379/0", "2", "others"]
    assert shown.split() == [*words, *["no", "answer", "within", "0.05", "s"]]


async def test_the_status_table_says_that_a_store_should_not_be_in_the_clear(capsys) -> None:
    from cluster.cli.status import _print

    found = await status()
    found["routers"][0]["store_in_clear"] = True
    _print(found)
    assert "redis://cache:6379/0 (in the clear!)" in capsys.readouterr().out


async def test_the_status_table_says_of_several_routers_that_they_share_nothing(capsys) -> None:
    from cluster.cli.status import _print

    found = await status()
    [sharing] = found["routers"]
    alone = sharing | {"router_id": "router-2", "store": "", "degraded": "", "peers": 0}
    for routers, said in (
        ([alone], ""),
        ([alone, alone], "2 of 2 routers share nothing: each counts limits and request ids by"),
        ([sharing, alone], "1 of 2 routers share nothing"),
        ([sharing, sharing], ""),
    ):
        _print(found | {"routers": routers})
        shown = capsys.readouterr().out
        assert (said in shown) if said else ("share nothing" not in shown)
        assert shown.count("router-2 ") == (routers.count(alone) if said else 0)


async def test_workers_of_several_ranks_show_their_shape_and_edges_between_ranks(capsys) -> None:
    from cluster.cli.status import _print

    shapes = {"prefill": ParallelShape(3, 1), "decode": ParallelShape(1, 2)}
    async with serve_worker(ranks=2) as endpoint:
        starting = Member(P0, MemberState.STARTING, 0.0)
        found = await status(ready(endpoint), starting, shapes=shapes)
    _print(found)
    lines = capsys.readouterr().out.splitlines()
    decode, prefill = (
        line.split() for line in lines if line.startswith(("decode-0", "prefill-0 "))
    )
    assert (decode[1], decode[4]) == ("1×2", "0|1")
    assert prefill[1:3] == ["3×1", "starting"]
    assert lines[-1].split()[:3] == ["prefill-0/2", "decode-0/1", "tcp"]
    assert [rank["pid"] for rank in found["workers"][0]["stats"]["ranks"]] == [70, 71]


async def test_a_rank_that_tells_nothing_of_itself_keeps_its_place(capsys) -> None:
    from cluster.cli.status import _print

    async with serve_worker(ranks=3, busy=(1,)) as endpoint:
        _print(await status(ready(endpoint), shapes={"decode": ParallelShape(3, 1)}))
    [decode] = [x.split() for x in capsys.readouterr().out.splitlines() if x.startswith("decode-0")]
    assert decode[4] == "0|?|2"


async def test_edges_from_ranks_of_a_worker_that_is_gone_are_still_told_apart(capsys) -> None:
    from cluster.cli.status import _print

    async with serve_worker(ranks=3) as endpoint:
        _print(await status(ready(endpoint), shapes={"decode": ParallelShape(3, 1)}))
    edges = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert edges == [["prefill-0/0", "decode-0/0"], ["prefill-0/2", "decode-0/2"]]


async def test_a_draining_worker_shows_what_it_still_has() -> None:
    async with serve_worker() as endpoint:
        draining = Member(D0, MemberState.DRAINING, 0.0, endpoint, detail="finishes what it has")
        [worker] = (await status(draining))["workers"]
    assert (worker["state"], worker["detail"]) == ("draining", "finishes what it has")
    assert worker["stats"]["total_blocks"] == 8


async def test_wishes_arrive_as_they_were_meant() -> None:
    operations = FakeOperations()
    async with admin_stub(operations) as stub:
        wanted = await stub.Scale(admin_pb2.ScaleRequest(decode=2))
        await stub.Scale(admin_pb2.ScaleRequest(prefill=0))
        await stub.Drain(admin_pb2.DrainRequest(worker="decode-0"))
        await stub.Drain(admin_pb2.DrainRequest(worker="decode-0", no_replace=True, limit_s=5))
        await stub.Flip(admin_pb2.FlipRequest(worker="prefill-0"))
    assert (wanted.prefill, wanted.decode) == (1, 2)
    assert operations.wishes == [
        ScaleTo(None, 2),
        ScaleTo(0, None),
        DrainWorker("decode-0"),
        DrainWorker("decode-0", replace=False, limit_s=5.0),
        FlipWorker("prefill-0"),
    ]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidField("decode", -1, "more"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (NotFound("no such", reason="WORKER_NOT_FOUND"), "NOT_FOUND", "WORKER_NOT_FOUND"),
        (Overloaded("no memory", reason="NOT_ENOUGH_MEMORY"), "RESOURCE_EXHAUSTED", None),
        (RuntimeError("a defect"), "INTERNAL", "INTERNAL"),
    ],
)
async def test_every_error_is_typed(error: Exception, code: str, reason: str | None) -> None:
    async with admin_stub(FakeOperations(error)) as stub:
        told = await error_of(stub.Scale(admin_pb2.ScaleRequest(decode=-1)))
    assert told.code is grpc.StatusCode[code]
    assert told.reason == (reason or error.reason)
    assert "a defect" not in told.message


@pytest.mark.parametrize("limit", [-1.0, float("nan"), 1e9])
async def test_an_impossible_drain_limit_is_named(limit: float) -> None:
    async with admin_stub(FakeOperations()) as stub:
        told = await error_of(stub.Drain(admin_pb2.DrainRequest(worker="d", limit_s=limit)))
    assert told.metadata["field"] == "limit_s"


async def test_while_the_cluster_starts_nothing_can_be_changed() -> None:
    async with admin_stub(None) as stub:
        told = await error_of(stub.Flip(admin_pb2.FlipRequest(worker="d")))
    assert told.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_leaves_with_a_node_is_told_by_name() -> None:
    operations = FakeOperations()
    async with admin_stub(operations) as stub:
        request = admin_pb2.DrainNodeRequest(address="10.0.0.7", limit_s=90.0)
        assert list((await stub.DrainNode(request)).workers) == ["decode-0", "prefill-0"]
        assert operations.left == ("10.0.0.7", 90.0)
        await stub.DrainNode(admin_pb2.DrainNodeRequest(address="10.0.0.7"))
        assert operations.left == ("10.0.0.7", 600.0)
        refused = await error_of(stub.DrainNode(admin_pb2.DrainNodeRequest(limit_s=-1.0)))
        assert "limit_s" in refused.message
    async with admin_stub(None) as stub:
        refused = await error_of(stub.DrainNode(admin_pb2.DrainNodeRequest(address="10.0.0.7")))
        assert "still starting" in refused.message
