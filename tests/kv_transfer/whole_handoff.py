"""A whole prompt handed over from one scripted replica to another, and whether it landed."""

from __future__ import annotations

import numpy as np
from replicas import KEY, DecodeReplica, PrefillReplica, split

from core.handoff import Ack, Commit, Committed
from core.step import SampledToken
from kv_transfer.prefill_session import Announcement, PrefillSession

IDS = (6, 2, 4)


async def hand_over(prefill: PrefillReplica, session: PrefillSession) -> None:
    """The whole prompt, in one go."""
    lease = await prefill.reserve(session)
    session.send(Announcement(KEY, lease, 0, IDS, (0, 0, 0)))
    session.send(Commit(KEY, lease, (SampledToken(42),), 0))
    assert await prefill.heard.get() == Ack(KEY, lease, 2, ())
    assert await prefill.heard.get() == Ack(KEY, lease, 3, ())
    assert await prefill.heard.get() == Committed(KEY, lease)


def landed_bit_for_bit(prefill: PrefillReplica, decode: DecodeReplica) -> bool:
    (start,) = decode.started
    wanted = split(prefill.model[list(IDS)], decode.layout, decode.shape)
    ranks = zip(decode.blocks, wanted, strict=True)
    return all(np.array_equal(blocks[start.block_ids], part) for blocks, part in ranks)
