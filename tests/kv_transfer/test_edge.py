"""One edge: a bounded part of a copy is in flight at a time, and what ends a copy half-way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from equal_edge import announced, whole_target

from core.lease_events import PieceCopy
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.edge import Edge
from kv_transfer.rank_ports import EdgeChoice
from kv_transfer.selection import Chosen
from kv_transfer.transport import CopyResult

BLOCK_BYTES = 64
POOL = np.zeros((8, BLOCK_BYTES), np.uint8)
COPIES = [
    PieceCopy(index, piece, index)
    for index, piece in enumerate(announced(POOL, range(5), [0] * 5), start=10)
]


@dataclass
class ScriptedSource:
    """Notes what it is asked at once; ``script`` runs before each answer."""

    transport: str = "scripted"
    asked: list[list[int]] = field(default_factory=list)
    script: Callable[[], None] = lambda: None
    closed: bool = False

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        indices = [item.index for item in copies]
        self.asked.append(indices)
        self.script()
        return CopyResult(tuple(indices), ())

    def abort(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ScriptedSource:
    opened = ScriptedSource()
    monkeypatch.setattr("kv_transfer.edge.open_source", lambda *_: Chosen(opened, "not faster"))
    monkeypatch.setattr("kv_transfer.edge.MAX_IN_FLIGHT_BYTES", 2 * BLOCK_BYTES)
    return opened


@pytest.fixture
async def edge(source: ScriptedSource) -> AsyncIterator[Edge]:
    opened = Edge(whole_target(POOL.copy()), "P0")
    choice = await opened.open(pb.RankOffer(), ["scripted"])
    assert choice == EdgeChoice(0, 0, "scripted", "not faster")
    yield opened
    opened.abort()
    await opened.close()
    assert source.closed


async def test_a_long_copy_is_made_in_parts_that_fit(edge: Edge, source: ScriptedSource) -> None:
    copied = await edge.copy(COPIES)
    assert source.asked == [[10, 11], [12, 13], [14]]
    assert (copied.good, copied.bad, copied.lost) == ((10, 11, 12, 13, 14), (), "")
    assert (copied.traffic.blocks, copied.traffic.bytes) == (5, 5 * BLOCK_BYTES)


async def test_an_abort_leaves_out_the_parts_that_follow(
    edge: Edge, source: ScriptedSource
) -> None:
    source.script = edge.abort
    copied = await edge.copy(COPIES)
    assert (copied.good, copied.bad) == ((10, 11), (12, 13, 14))
    assert copied.traffic.damaged == 0
    assert (await edge.copy(COPIES)).good == ()
    assert source.asked == [[10, 11]]


async def test_a_way_that_is_lost_leaves_out_the_parts_that_follow(
    edge: Edge, source: ScriptedSource
) -> None:
    def lose() -> None:
        if len(source.asked) == 2:
            raise ConnectionError("the wire was cut")

    source.script = lose
    copied = await edge.copy(COPIES)
    assert (copied.good, copied.bad) == ((10, 11), (12, 13, 14))
    assert (copied.lost, copied.traffic.damaged) == ("the wire was cut", 0)
    assert source.asked == [[10, 11], [12, 13]]
