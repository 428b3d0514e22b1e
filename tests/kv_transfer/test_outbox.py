"""What is said at the same time travels in one frame, in order, and comes apart at the end."""

from __future__ import annotations

import asyncio

import pytest

from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.outbox import Outbox, messages_of


def cancel(reason: str) -> pb.PrefillMessage:
    return pb.PrefillMessage(cancel=pb.Cancel(reason=reason))


def reasons(frame: pb.PrefillMessage | None) -> list[str]:
    assert frame is not None
    arrived = pb.PrefillMessage.FromString(frame.SerializeToString())
    return [message.cancel.reason for message in messages_of(arrived)]


async def test_what_waits_together_leaves_together_in_order() -> None:
    outbox = Outbox(cancel)
    for reason in "abc":
        outbox.put(reason)
    assert reasons(await outbox.next_frame()) == ["a", "b", "c"]
    outbox.put("d")
    assert reasons(await outbox.next_frame()) == ["d"]


async def test_what_waits_before_the_end_still_leaves() -> None:
    outbox = Outbox(cancel)
    outbox.put("a")
    outbox.end()
    assert reasons(await outbox.next_frame()) == ["a"]
    assert await outbox.next_frame() is None


async def test_whoever_waits_for_a_message_hears_of_the_end() -> None:
    outbox = Outbox(cancel)
    waiting = asyncio.create_task(outbox.next_frame())
    await asyncio.sleep(0)
    outbox.end()
    assert await waiting is None


async def test_a_large_message_fills_a_frame() -> None:
    outbox = Outbox(cancel)
    for reason in ("a", "b" * (1 << 20), "c", "d"):
        outbox.put(reason)
    assert [reason[0] for reason in reasons(await outbox.next_frame())] == ["a", "b"]
    assert reasons(await outbox.next_frame()) == ["c", "d"]


def test_a_frame_within_a_frame_is_refused() -> None:
    inner = cancel("b")
    inner.more.append(cancel("c"))
    outer = cancel("a")
    outer.more.append(inner)
    with pytest.raises(ValueError, match="has others in it"):
        messages_of(outer)
