"""What the lease rules of D take in and give out: events and commands as frozen dataclasses.

The messages of P are in ``core.handoff``, the rules in ``core.lease``.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.block_hash import HashArray, TokenArray
from core.block_pool import BlockIds
from core.handoff import FailureCause, Piece, ToDecode, ToPrefill
from core.request import AttemptKey, SamplingParams
from core.step import SampledToken
from core.values import value


# Events, beside the messages of P.
@value()
class FromPrefill:
    """A message arrived on the stream of ``peer`` (a prefill worker in one life)."""

    peer: str
    message: ToDecode


@value(eq=False)
class Granted:
    """The scheduler found blocks: ``held`` cached ones first, then new ones with room to grow."""

    key: AttemptKey
    block_ids: BlockIds
    held: int
    hashes: HashArray


@value()
class Copied:
    """A copy ended. ``good`` and ``bad`` are prompt block indices."""

    lease_id: int
    good: tuple[int, ...]
    bad: tuple[int, ...]


@value()
class Opened:
    """The router opened the answer stream of an attempt that a prefill worker will commit."""

    key: AttemptKey


@value()
class Aborted:
    """The router gave the attempt up."""

    key: AttemptKey


@value()
class PeerLost:
    """The stream of a prefill worker broke."""

    peer: str


@value()
class Tick:
    """Time passed."""


LeaseInput = FromPrefill | Granted | Copied | Opened | Aborted | PeerLost | Tick


# Commands.
@value()
class SendToPrefill:
    peer: str
    message: ToPrefill


@value(eq=False)
class EnqueueReserve:
    """Put this prompt, which has n answers, into D's one FIFO of those who wait for blocks.

    ``hashes``: see `core.handoff.Reserve`.
    """

    key: AttemptKey
    tokens: TokenArray
    salt: int
    n: int
    hashes: HashArray | None = None


@value()
class DequeueReserve:
    key: AttemptKey


# Not frozen, for the reason that is told in ``core.step``.
@dataclass(slots=True)
class PieceCopy:
    """Copy ``piece`` of P's pool into block ``destination`` of D's; prompt block ``index``."""

    index: int
    piece: Piece
    destination: int


@value()
class CopyPieces:
    """Copy and verify; answer with `Copied`. The destinations stay reserved until then."""

    key: AttemptKey
    lease_id: int
    peer: str
    copies: tuple[PieceCopy, ...]


@value(eq=False)
class StartSequence:
    """The commit is complete: decode n answers from here. The blocks now belong to them.

    ``computed`` is the number of prompt tokens whose KV is in place: all of them, unless a piece
    stayed damaged; then D recomputes from there.
    """

    key: AttemptKey
    tokens: TokenArray
    salt: int
    params: SamplingParams
    block_ids: BlockIds
    held: int
    hashes: HashArray
    computed: int
    first_tokens: tuple[SampledToken, ...]
    cached_tokens: int


@value()
class FailAttempt:
    """Tell the router that this attempt is over here."""

    key: AttemptKey
    cause: FailureCause
    detail: str


LeaseCommand = (
    SendToPrefill | EnqueueReserve | DequeueReserve | CopyPieces | StartSequence | FailAttempt
)
