"""Frames survive however the stream is cut."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InternalError
from worker.ranks import framing
from worker.ranks.framing import MAX_FRAME_BYTES, FrameBuffer, pack_frame


@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.integers(0, 160), max_size=8))
def test_frames_come_out_whole_and_in_order(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(pack_frame, bodies))
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer = FrameBuffer()
    found = [frame for start, end in pairwise(bounds) for frame in buffer.feed(stream[start:end])]
    assert found == bodies


def test_a_frame_that_is_too_long_ends_the_connection_before_it_is_collected() -> None:
    with pytest.raises(ConnectionError, match="at most 67,108,864"):
        FrameBuffer().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_nothing_too_long_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 10)
    with pytest.raises(InternalError, match="11 bytes"):
        pack_frame(bytes(11))
