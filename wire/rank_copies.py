"""What the ranks of D are asked to copy, and what came of it, to and from rank.proto."""

from __future__ import annotations

from collections.abc import Sequence

from core.handoff import Piece
from core.lease_events import PieceCopy
from crossdock.v1 import handoff_pb2
from crossdock.v1 import rank_pb2 as pb


def copies_to_wire(stream: str, after_step: int, copies: Sequence[PieceCopy]) -> pb.CopyBlocks:
    return pb.CopyBlocks(
        stream=stream,
        after_step=after_step,
        indices=[copy.index for copy in copies],
        destinations=[copy.destination for copy in copies],
        pieces=[
            handoff_pb2.Piece(
                block_id=copy.piece.block_id,
                generation=copy.piece.generation,
                checksums=copy.piece.checksums,
            )
            for copy in copies
        ],
    )


def copies_from_wire(message: pb.CopyBlocks) -> tuple[PieceCopy, ...]:
    """Raises ``ValueError`` if the three lists are of different lengths."""
    return tuple(
        PieceCopy(
            index,
            Piece(piece.block_id, piece.generation, tuple(piece.checksums)),
            destination,
        )
        for index, piece, destination in zip(
            message.indices, message.pieces, message.destinations, strict=True
        )
    )
