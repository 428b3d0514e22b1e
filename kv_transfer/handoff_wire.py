"""The messages of ``core.handoff`` as handoff.proto carries them, both ways."""

from __future__ import annotations

from core.handoff import (
    Ack,
    Announce,
    Beat,
    Cancel,
    Commit,
    Committed,
    LeaseLost,
    NoRoom,
    Piece,
    Reserve,
    Ticket,
    ToDecode,
    ToPrefill,
)
from core.step import SampledToken
from crossdock.v1 import handoff_pb2 as pb
from wire.attempts import (
    key_from_wire,
    key_to_wire,
    logprobs_from_wire,
    logprobs_to_wire,
    sampling_from_wire,
    sampling_to_wire,
    tokens_from_wire,
    tokens_to_wire,
)


def to_decode_wire(message: ToDecode) -> pb.PrefillMessage:
    match message:
        case Reserve():
            return pb.PrefillMessage(
                reserve=pb.Reserve(
                    key=key_to_wire(message.key),
                    token_ids=tokens_to_wire(message.tokens),
                    salt=message.salt,
                    sampling=sampling_to_wire(message.params),
                )
            )
        case Announce(key, lease_id, first, pieces):
            wire_pieces = [
                pb.Piece(block_id=p.block_id, generation=p.generation, checksums=p.checksums)
                for p in pieces
            ]
            announce = pb.Announce(
                key=key_to_wire(key), lease_id=lease_id, first=first, pieces=wire_pieces
            )
            return pb.PrefillMessage(announce=announce)
        case Commit(key, lease_id, first_tokens, cached_tokens):
            commit = pb.Commit(
                key=key_to_wire(key),
                lease_id=lease_id,
                first_tokens=[_first_token_to_wire(token) for token in first_tokens],
                cached_tokens=cached_tokens,
            )
            return pb.PrefillMessage(commit=commit)
        case Beat(progress, longest_step):
            leases = [pb.LeaseProgress(lease_id=x, computed_tokens=n) for x, n in progress]
            return pb.PrefillMessage(beat=pb.Beat(leases=leases, longest_step_s=longest_step))
        case Cancel(key, reason):
            return pb.PrefillMessage(cancel=pb.Cancel(key=key_to_wire(key), reason=reason))


def from_prefill_wire(message: pb.PrefillMessage) -> ToDecode:
    """Raises ValueError for a message that is not part of a running session."""
    match message.WhichOneof("message"):
        case "reserve":
            reserve = message.reserve
            return Reserve(
                key_from_wire(reserve.key),
                tokens_from_wire(reserve.token_ids),
                reserve.salt,
                sampling_from_wire(reserve.sampling),
            )
        case "announce":
            announce = message.announce
            pieces = tuple(
                Piece(p.block_id, p.generation, tuple(p.checksums)) for p in announce.pieces
            )
            return Announce(key_from_wire(announce.key), announce.lease_id, announce.first, pieces)
        case "commit":
            commit = message.commit
            return Commit(
                key_from_wire(commit.key),
                commit.lease_id,
                tuple(_first_token_from_wire(token) for token in commit.first_tokens),
                commit.cached_tokens,
            )
        case "beat":
            beat = message.beat
            progress = tuple((x.lease_id, x.computed_tokens) for x in beat.leases)
            return Beat(progress, beat.longest_step_s)
        case "cancel":
            return Cancel(key_from_wire(message.cancel.key), message.cancel.reason)
        case other:
            raise ValueError(f"unexpected message from a prefill worker: {other}")


def check_checksums(message: ToDecode, num_edges: int) -> None:
    """Raises ValueError for a piece that has not one checksum for each edge of the plan."""
    if isinstance(message, Announce):
        for piece in message.pieces:
            if len(piece.checksums) != num_edges:
                raise ValueError(
                    f"block {piece.block_id} was announced with {len(piece.checksums)} checksums, "
                    f"this handoff has {num_edges} edges"
                )


def _first_token_to_wire(token: SampledToken) -> pb.FirstToken:
    logprobs = None if token.logprobs is None else logprobs_to_wire(token.logprobs)
    return pb.FirstToken(token_id=token.token, logprobs=logprobs)


def _first_token_from_wire(token: pb.FirstToken) -> SampledToken:
    logprobs = logprobs_from_wire(token.logprobs) if token.HasField("logprobs") else None
    return SampledToken(token.token_id, logprobs)


def to_prefill_wire(message: ToPrefill) -> pb.DecodeMessage:
    key = key_to_wire(message.key)
    match message:
        case Ticket(_, lease_id, held):
            return pb.DecodeMessage(ticket=pb.Ticket(key=key, lease_id=lease_id, held_blocks=held))
        case NoRoom(_, detail):
            return pb.DecodeMessage(no_room=pb.NoRoom(key=key, detail=detail))
        case Ack(_, lease_id, verified, resend):
            ack = pb.Ack(key=key, lease_id=lease_id, verified=verified, resend=resend)
            return pb.DecodeMessage(ack=ack)
        case Committed(_, lease_id):
            return pb.DecodeMessage(committed=pb.Committed(key=key, lease_id=lease_id))
        case LeaseLost(_, lease_id, reason):
            lost = pb.LeaseLost(key=key, lease_id=lease_id, reason=reason)
            return pb.DecodeMessage(lost=lost)


def from_decode_wire(message: pb.DecodeMessage) -> ToPrefill:
    """Raises ValueError for a message that is not part of a running session."""
    match message.WhichOneof("message"):
        case "ticket":
            ticket = message.ticket
            return Ticket(key_from_wire(ticket.key), ticket.lease_id, ticket.held_blocks)
        case "no_room":
            return NoRoom(key_from_wire(message.no_room.key), message.no_room.detail)
        case "ack":
            ack = message.ack
            return Ack(key_from_wire(ack.key), ack.lease_id, ack.verified, tuple(ack.resend))
        case "committed":
            return Committed(key_from_wire(message.committed.key), message.committed.lease_id)
        case "lost":
            lost = message.lost
            return LeaseLost(key_from_wire(lost.key), lost.lease_id, lost.reason)
        case other:
            raise ValueError(f"unexpected message from a decode worker: {other}")
