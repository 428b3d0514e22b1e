"""Ranks of a cluster with `tls`: who is let in, and messages both ways at the same time."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import make_authority, make_worker

from core.errors import Unavailable
from core.tls_files import TlsFiles
from core.worker_settings import LeaderAddress
from crossdock.v1 import rank_pb2 as pb
from worker.ranks.connect import connect_to_leader
from worker.ranks.connection import RankConnection
from worker.ranks.listener import RankListener
from worker.ranks.tls_connection import RankSocket, TlsConnection

HOST = "127.0.0.1"
TOKEN = bytes(range(16))
SILENCE_S = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def member(folder: Path) -> TlsFiles:
    return make_worker(folder, "worker", folder)


@pytest.fixture
def admitted() -> queue.Queue[RankSocket]:
    return queue.Queue()


@pytest.fixture
def leader(member: TlsFiles, admitted: queue.Queue[RankSocket]) -> Iterator[LeaderAddress]:
    listener = RankListener(HOST, TOKEN, admitted.put, member)
    yield LeaderAddress(HOST, listener.port, TOKEN)
    listener.close()


def test_a_rank_with_a_certificate_and_the_token_is_let_in(
    leader: LeaderAddress, member: TlsFiles, admitted: queue.Queue[RankSocket]
) -> None:
    with connect_to_leader(leader, member) as rank:
        server = admitted.get(timeout=SILENCE_S)
        assert isinstance(server, TlsConnection)
        rank.sendall(b"hello")
        assert server.recv(100) == b"hello"
        server.close()
        assert rank.recv(100) == b""


@pytest.mark.thorough
def test_strangers_are_refused_even_with_the_token(
    leader: LeaderAddress,
    member: TlsFiles,
    folder: Path,
    tmp_path: Path,
    admitted: queue.Queue[RankSocket],
) -> None:
    make_authority(tmp_path)
    elsewhere = make_worker(tmp_path, "stranger", tmp_path)
    operator = make_worker(folder, "operator", folder, "crossdock-operator")
    strangers = {
        "another authority": (elsewhere, "CERTIFICATE_VERIFY_FAILED"),
        "its certificate": (replace(elsewhere, ca=member.ca), "can't be reached"),
        "an operator": (replace(operator, name=member.name), "can't be reached"),
        "another name": (replace(member, name="others"), "Hostname mismatch"),
        "in the clear": (None, "can't be reached"),
    }
    for who, (tls, words) in strangers.items():
        with pytest.raises(Unavailable, match=words):
            connect_to_leader(leader, tls, limit_s=0.0, attempt_s=2.0)
        assert admitted.empty(), who


def test_a_wrong_token_is_refused_even_with_a_certificate(
    leader: LeaderAddress, member: TlsFiles, admitted: queue.Queue[RankSocket]
) -> None:
    wrong = LeaderAddress(HOST, leader.port, bytes(16))
    with pytest.raises(Unavailable):
        connect_to_leader(wrong, member, limit_s=0.0)
    assert admitted.empty()


def test_messages_cross_while_both_sides_send(
    leader: LeaderAddress, member: TlsFiles, admitted: queue.Queue[RankSocket]
) -> None:
    """Far more than the buffers hold, of all sizes; each side reads on a thread of its own."""
    rank = connect_to_leader(leader, member)
    ends = [rank, admitted.get(timeout=SILENCE_S)]
    connections = [RankConnection(end, f"end {i}", SILENCE_S) for i, end in enumerate(ends)]
    heard: list[list[bytes]] = [[], []]
    complete = [threading.Event(), threading.Event()]
    sizes = [1, 100, 20_000, 3_000_000, 7, 65_536] * 4
    values = [bytes([i % 251]) * size for i, size in enumerate(sizes)]

    def hear(side: int, message: pb.RankMessage) -> None:
        heard[side].append(message.set_value.value)
        if len(heard[side]) == len(values):
            complete[side].set()

    def send_all(connection: RankConnection) -> None:
        for value in values:
            connection.send(pb.RankMessage(set_value=pb.SetValue(key="k", value=value)))

    for side, connection in enumerate(connections):
        connection.start(lambda message, side=side: hear(side, message), lambda error: None)
    senders = [threading.Thread(target=send_all, args=(each,)) for each in connections]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(SILENCE_S)
    assert all(event.wait(SILENCE_S) for event in complete)
    assert heard == [values, values]
    for connection in connections:
        connection.close()


def test_the_end_of_a_connection_is_told_over_tls_too(
    leader: LeaderAddress, member: TlsFiles, admitted: queue.Queue[RankSocket]
) -> None:
    rank = connect_to_leader(leader, member)
    server = RankConnection(admitted.get(timeout=SILENCE_S), "the rank", SILENCE_S)
    ends: queue.Queue[BaseException] = queue.Queue()
    server.start(lambda message: None, ends.put)
    rank.shutdown(socket.SHUT_RDWR)
    rank.close()
    assert "the connection to the rank" in str(ends.get(timeout=SILENCE_S))
