"""How blocks get from one fake engine's memory into another's, as transports do it."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from fake_engine import FakeEngine

from core.handoff import Announce, Piece
from core.lease_events import PieceCopy
from prefill_worker.messages import AnnouncePieces


def block_checksums(memory: np.ndarray, block_id: int) -> tuple[int, ...]:
    """One for each stage."""
    return tuple(hash(part.tobytes()) & (2**63 - 1) for part in memory[:, block_id])


def described(engine: FakeEngine, item: AnnouncePieces) -> Announce:
    """Checksums are computed late: P may have given the blocks to somebody else by then."""
    pieces = tuple(
        Piece(block_id, generation, block_checksums(engine.memory, block_id))
        for block_id, generation in zip(item.block_ids, item.generations, strict=True)
    )
    return Announce(item.key, item.lease_id, item.first, pieces)


def copy_piece(
    source: FakeEngine,
    generations: npt.NDArray[np.uint64],
    target: FakeEngine,
    item: PieceCopy,
    draw: random.Random,
    damage: float,
) -> bool:
    """Every stage of D takes its part of the block from the stage of P that has it. Tells whether
    the right bytes landed. ``damage``: the chance of a wrong bit."""
    piece = item.piece
    place = target.memory[:, item.destination]
    stages = np.arange(target.depth) % source.depth
    place[:] = source.memory[stages, piece.block_id]
    if draw.random() < damage:
        place[draw.randrange(target.depth), draw.randrange(target.block_size)] ^= np.uint64(1)
    if int(generations[piece.block_id]) != piece.generation:
        return False
    expected = tuple(piece.checksums[stage] for stage in stages)
    return block_checksums(target.memory, item.destination) == expected
