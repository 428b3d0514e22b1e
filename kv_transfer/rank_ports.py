"""What the two ends of a handoff ask of the ranks of their replica.

The handoff is led by rank 0 on both sides: one stream, one lease, one commit for the replica. The
bytes go from rank to rank. Rank 0 itself implements these directly (``kv_transfer.rank_sender``,
``kv_transfer.rank_receiver``); the others are reached through their replica's own connection
(``worker.ranks``), behind which the same two classes do the work.
All methods are called on the event loop of the leading rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.lease_events import PieceCopy
from core.shards import ParallelShape
from crossdock.v1 import handoff_pb2 as pb


class RankSender(Protocol):
    """One rank of P: offers its pool, and says what its finished blocks hold."""

    async def offer(self, stream: str) -> pb.RankOffer:
        """The ways to this rank's pool, for one stream to one decode worker."""

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        """Checksums [block][edge] of what these blocks hold, for each edge that starts at this
        rank in the plan towards a decode worker of shape ``destination``, in the plan's order.

        May run several times at once; raises whatever keeps it from reading a block.
        """

    def withdraw(self, stream: str) -> None:
        """The stream has ended: ends what was opened with its offer, as far as P can."""


@dataclass(frozen=True, slots=True)
class EdgeChoice:
    """The transport of one edge; ``detail``: why no faster one was taken, "" if the fastest was."""

    source: int
    destination: int
    transport: str
    detail: str


@dataclass(frozen=True, slots=True)
class EdgeTraffic:
    """What one copy brought over one edge: whole and damaged parts of blocks, bytes of the whole
    ones, and the seconds that it took."""

    source: int
    destination: int
    blocks: int
    damaged: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RankCopied:
    """Prompt block indices of which every part landed and was verified, and the others.

    ``lost``: why an edge's way is gone for good, "" if all of them work. The stream must end then:
    the next one opens its edges anew.
    """

    good: tuple[int, ...]
    bad: tuple[int, ...]
    traffic: tuple[EdgeTraffic, ...] = ()
    lost: str = ""


class RankReceiver(Protocol):
    """One rank of D: its edges from the ranks of each prefill worker."""

    async def open(self, stream: str, hello: pb.Hello) -> tuple[EdgeChoice, ...]:
        """Opens and tests all edges of the plan that end at this rank.

        ``hello`` has passed ``kv_transfer.handshake``. Raises ``Incompatible``, naming the ranks
        and the reasons, if no transport works on some edge: then nothing stays open.
        """

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        """Copies and verifies this rank's part of each piece, over all its edges.

        Never raises: without a way nothing landed. A piece is good if every part of it is.
        """

    def abort(self, stream: str) -> None:
        """Copies of this stream under way end at once; those that wait copy nothing."""

    async def close(self, stream: str) -> None:
        """Returns when nothing of this stream can be written any more. Call after `abort`."""
