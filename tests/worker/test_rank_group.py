"""The leading rank and the others: who is let in, and how everything ends."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest
from replica_in_process import FakeEngine, nothing, replica_of, settings_of, step

from core.errors import Incompatible, Unavailable
from core.worker_settings import LeaderAddress
from crossdock.v1 import rank_pb2 as pb
from worker.ranks import group as group_module
from worker.ranks.connect import connect_to_leader
from worker.ranks.connection import RankConnection, pack_message
from worker.ranks.executor import RankExecutor
from worker.ranks.group import RankGroup
from worker.ranks.handshake import admit
from worker.ranks.membership import join_message


async def test_all_ranks_join_and_get_ready() -> None:
    async with replica_of(3, 1) as replica:
        assert not replica.group.joined.done()
        for rank in (2, 1):
            await replica.join(rank, FakeEngine())
        await asyncio.to_thread(replica.group.wait, replica.group.ready, 10)
        assert replica.group.ranks == [1, 2]
        replica.group.check_models(7)


async def test_values_travel_between_ranks() -> None:
    async with replica_of(3, 1) as replica:
        one = (await replica.join(1, FakeEngine())).follower.key_values
        two = (await replica.join(2, FakeEngine())).follower.key_values
        waiting = asyncio.create_task(asyncio.to_thread(two.get, "address"))
        await asyncio.to_thread(one.set, "address", b"\x00here")
        assert await waiting == b"\x00here"
        assert replica.group.key_values.get("address") == b"\x00here"
        assert await asyncio.to_thread(two.has, "address")
        assert not await asyncio.to_thread(two.has, "of nobody")


def test_who_does_not_know_the_token_hears_a_greeting_only() -> None:
    group = RankGroup(settings_of(2, 1))
    wrong = LeaderAddress(group.address.host, group.address.port, bytes(16))
    with pytest.raises(Unavailable, match="the peer closed the connection"):
        connect_to_leader(wrong, limit_s=0)
    with socket.create_connection((wrong.host, wrong.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        stranger.settimeout(10)
        heard = b""
        while data := _receive(stranger):
            heard += data
    assert heard[:8] == b"XDOCK-RK"
    assert len(heard) == 32
    assert not group.joined.done()
    assert not group.lost.done()
    group.close()


def test_a_leader_that_does_not_know_the_token_is_not_joined() -> None:
    """Somebody who took the leader's port answers with what he has."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pretend() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"XDOCK-RK" + b"\x01\x00" + bytes(6) + bytes(16))
                connection.recv(48)
                connection.sendall(bytes(32))

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(Unavailable, match="does not know the token"):
            connect_to_leader(LeaderAddress("127.0.0.1", server.getsockname()[1], bytes(16)))
        thread.join()


def test_a_leader_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = LeaderAddress("127.0.0.1", server.getsockname()[1], bytes(16))
        with pytest.raises(Unavailable, match="timed out"):
            connect_to_leader(place, limit_s=0, attempt_s=0.05)


def test_a_leader_that_has_no_time_is_tried_again() -> None:
    token = bytes(16)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        place = LeaderAddress("127.0.0.1", server.getsockname()[1], token)
        connecting = threads.submit(connect_to_leader, place)
        # As a leader does that has too many strangers.
        server.accept()[0].close()
        connection, _ = server.accept()
        with connection:
            admit(connection, token, time.monotonic() + 10)
            with connecting.result(10) as admitted:
                assert admitted.getpeername() == connection.getsockname()


async def test_a_rank_that_is_there_already_is_refused_and_hurts_nobody() -> None:
    async with replica_of(3, 1) as replica:
        await replica.join(1, FakeEngine())
        with pytest.raises(Incompatible, match=r"rank 1 .* ranks \[2\] are awaited"):
            await replica.join(1, FakeEngine())
        await replica.join(2, FakeEngine())
        await asyncio.to_thread(replica.group.wait, replica.group.ready, 10)
        assert not replica.group.lost.done()


async def test_who_is_missing_is_named() -> None:
    async with replica_of(3, 1) as replica:
        await replica.join(2, FakeEngine())
        with pytest.raises(Unavailable, match=r"ranks \[1\] did not join within 0.01 s"):
            replica.group.wait(replica.group.joined, 0.01)


async def test_nobody_can_connect_once_all_have_joined() -> None:
    async with replica_of(2, 1) as replica:
        await replica.join(1, FakeEngine())
        await asyncio.to_thread(replica.group.wait, replica.group.joined, 10)
        with pytest.raises(Unavailable, match="refused"):
            connect_to_leader(replica.group.address)


async def test_a_rank_that_ends_is_told_once_and_ends_the_others() -> None:
    async with replica_of(3, 1) as replica:
        one, two = [await replica.join(rank, FakeEngine()) for rank in (1, 2)]
        told: list[str] = []
        replica.group.lost.add_done_callback(lambda lost: told.append(str(lost.exception())))
        await one.follower.stop()
        with pytest.raises(Unavailable, match="rank 2 of w-0 lost its leading rank"):
            await two.follower.ended
        assert told == ["rank 1 is lost: the connection to rank 1 ended"]
        with pytest.raises(Unavailable, match="rank 1 is lost"):
            replica.group.key_values.get("anything")


async def test_a_rank_that_says_nothing_is_lost() -> None:
    group = RankGroup(settings_of(2, 1), silence_s=0.05)
    connection = await asyncio.to_thread(connect_to_leader, group.address)
    joining = pb.RankMessage(request=1, join=join_message(settings_of(2, 1), 1))
    connection.sendall(pack_message(joining))
    connection.sendall(pack_message(pb.RankMessage(ready=pb.RankReady(model_hash=7))))
    error = await asyncio.to_thread(group.lost.exception, 10)
    connection.close()
    assert str(error) == "rank 1 is lost: rank 1 said nothing for 0.05 s"


async def test_an_engine_that_crashes_says_why() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        member.engine.generations.flags.writeable = False
        executor = RankExecutor(
            replica.group,
            replica.settings.shape,
            FakeEngine(draws=1).execute,
            member.engine.generations,
            replica.settings.block_size,
        )
        executor.submit(step(), nothing)
        error = await asyncio.to_thread(replica.group.lost.exception, 10)
        assert "it crashed: ValueError: assignment destination is read-only" in str(error)
        with pytest.raises(ValueError, match="read-only"):
            await member.follower.ended


async def test_a_check_is_made_again_and_again(monkeypatch) -> None:
    monkeypatch.setattr(group_module, "PING_S", 0.01)
    async with replica_of(2, 1) as replica:
        times: SimpleQueue[float] = SimpleQueue()
        replica.group.check_often(times.put)
        first, second = [await asyncio.to_thread(times.get, timeout=10) for _ in range(2)]
        assert first < second


async def test_one_rank_that_is_gone_keeps_no_other_from_hearing_of_the_stop() -> None:
    async with replica_of(3, 1) as replica:
        one, two = [await replica.join(rank, FakeEngine()) for rank in (1, 2)]
        send = replica.group._ranks[1].send_packed

        def broken(frame: bytes) -> None:
            raise BrokenPipeError

        replica.group._ranks[1].send_packed = broken  # type: ignore[method-assign]
        replica.group.close()
        await two.follower.ended
        replica.group._ranks[1].send_packed = send  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="lost its leading rank"):
            await one.follower.ended


async def test_who_never_says_which_rank_it_is_is_hung_up_on_at_the_end(monkeypatch) -> None:
    started = threading.Event()
    start = RankConnection.start

    def noted_start(self: RankConnection, *arguments: Any) -> None:
        start(self, *arguments)
        started.set()

    monkeypatch.setattr(RankConnection, "start", noted_start)
    group = RankGroup(settings_of(2, 1))
    with connect_to_leader(group.address) as connection:
        assert started.wait(10)
        group.close()
        connection.settimeout(10)
        assert _receive(connection) == b""


async def test_a_stop_in_order_is_no_failure() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        replica.group.close()
        await member.follower.ended
        assert not replica.group.lost.done()


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1024)
    except ConnectionResetError:
        return b""
