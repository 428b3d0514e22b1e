"""What the two ends of an NCCL edge say to each other, take in and give out.

Messages travel on the edge's control connection (``kv_transfer.nccl_wire``). The rules that turn
events into commands are in ``kv_transfer.nccl_receiver_rules`` and
``kv_transfer.nccl_sender_rules``.
An *opening* is one life of the edge's communicator, numbered by D; a batch is numbered within it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.block_region import BlockRegion

# (block id, generation) of each row of a batch.
Batch = tuple[tuple[int, int], ...]
# The first batch of each opening ships known bytes: the edge's self-test.
PROBE = 0


# D → P.
@dataclass(frozen=True, slots=True)
class Open:
    """Join as rank 0. ``region`` of P's blocks is wanted, ``row_bytes`` of each."""

    opening: int
    unique_id: bytes
    region: BlockRegion
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Go:
    """Send batch ``number`` now: D has enqueued its receive (of the probe, it is about to)."""

    opening: int
    number: int
    pieces: Batch


@dataclass(frozen=True, slots=True)
class Close:
    """Give the communicator up; nothing is under way."""

    opening: int


# P → D.
@dataclass(frozen=True, slots=True)
class Joining:
    """P joins in this moment; D should, too."""

    opening: int


@dataclass(frozen=True, slots=True)
class Sent:
    """Batch ``number`` has left; ``present``: which of its rows hold what was asked for."""

    opening: int
    number: int
    present: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Full:
    """P has no room for another communicator."""

    opening: int


@dataclass(frozen=True, slots=True)
class CloseWanted:
    """P needs room: D should close when nothing is under way, and open again on demand."""

    opening: int


FromDecode = Open | Go | Close
FromPrefill = Joining | Sent | Full | CloseWanted


# Events.
@dataclass(frozen=True, slots=True)
class Heard:
    """A message of the peer."""

    message: FromDecode | FromPrefill


@dataclass(frozen=True, slots=True)
class CopyWanted:
    """D: these batches are to come; none: the edge is only to be opened and tested."""

    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class RoomWanted:
    """D: other edges of this process need room for a communicator."""


@dataclass(frozen=True, slots=True)
class RoomMade:
    """There is room for one more communicator in this process."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """There is none."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The communicator stands."""


@dataclass(frozen=True, slots=True)
class Landed:
    """D: the receive of batch ``number`` is over on the GPU."""

    number: int


@dataclass(frozen=True, slots=True)
class ProbeSeen:
    """D: whether the known bytes arrived."""

    right: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """D: batch ``number`` is in the pool and verified."""

    number: int


@dataclass(frozen=True, slots=True)
class SendOver:
    """P: batch ``number`` has left the GPU; ``present`` as in `Sent`."""

    number: int
    present: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The communicator is gone."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The edge can't go on: fenced from outside, or its connection or GPU failed."""

    reason: str


# Commands.
@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Let other idle edges close until there is room for one more; then `RoomMade` or `NoRoom`.

    ``asked``: on P, what it is for: staging is made for it as well.
    """

    asked: Open | None = None


@dataclass(frozen=True, slots=True)
class Invite:
    """D: make a unique id and staging, then say `Open`."""

    opening: int


@dataclass(frozen=True, slots=True)
class Join:
    """Make the communicator; ``unique_id``: P's, None on D, who made it. Then `Joined`."""

    unique_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class Say:
    message: FromDecode | FromPrefill


@dataclass(frozen=True, slots=True)
class Receive:
    """D: enqueue the receive of so many rows into staging."""

    number: int
    rows: int


@dataclass(frozen=True, slots=True)
class AwaitReceive:
    """D: wait until the receive is over; then `Landed`."""

    number: int


@dataclass(frozen=True, slots=True)
class CheckProbe:
    """D: compare staging with the known bytes; then `ProbeSeen`."""


@dataclass(frozen=True, slots=True)
class Store:
    """D: unpack the rows that are ``present`` into the pool and verify them; then `Stored`."""

    number: int
    present: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """D: what was wanted is over, as far as it came."""


@dataclass(frozen=True, slots=True)
class SendProbe:
    """P: send the known bytes; then `SendOver`."""


@dataclass(frozen=True, slots=True)
class Send:
    """P: pack and send these; then `SendOver`."""

    number: int
    pieces: Batch


@dataclass(frozen=True, slots=True)
class Destroy:
    """Give the communicator and staging up; then `Destroyed`."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Nothing moves over this edge any more: abort the communicator, end the connection."""

    reason: str


Event = (
    Heard
    | CopyWanted
    | RoomWanted
    | RoomMade
    | NoRoom
    | Joined
    | Landed
    | ProbeSeen
    | Stored
    | SendOver
    | Destroyed
    | Failed
)
Command = (
    MakeRoom
    | Invite
    | Join
    | Say
    | Receive
    | AwaitReceive
    | CheckProbe
    | Store
    | Finish
    | SendProbe
    | Send
    | Destroy
    | Fence
)
