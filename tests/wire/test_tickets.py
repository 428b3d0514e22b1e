"""Tickets: only who has the key can make one, and every byte of it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unauthenticated
from crossdock.v1.token_stream_pb2 import TicketClaims
from crossdock.v1.worker_pb2 import AttemptKey
from wire.tickets import KEY_BYTES, check, claims_of, sign

KEY = bytes(range(KEY_BYTES))
CLAIMS = TicketClaims(
    router_id="router-1",
    worker="decode-0",
    epoch=7,
    key=AttemptKey(tenant="default", request_id="r1", attempt=2),
)


def test_a_ticket_says_what_was_signed() -> None:
    ticket = sign(CLAIMS, KEY)
    check(ticket, KEY)
    assert claims_of(ticket) == CLAIMS


@pytest.mark.parametrize("key", [None, b"", bytes(KEY_BYTES), KEY[:-1]])
def test_another_key_or_none_opens_nothing(key: bytes | None) -> None:
    with pytest.raises(Unauthenticated, match="not a ticket"):
        check(sign(CLAIMS, KEY), key)


@given(st.integers(0, len(sign(CLAIMS, KEY)) * 8 - 1))
def test_no_bit_can_be_changed(bit: int) -> None:
    ticket = bytearray(sign(CLAIMS, KEY))
    ticket[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Unauthenticated):
        check(bytes(ticket), KEY)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_ticket_are_refused(raw: bytes) -> None:
    with pytest.raises(Unauthenticated, match="not a ticket"):
        check(raw, KEY)


def test_claims_that_are_none_are_refused() -> None:
    with pytest.raises(Unauthenticated, match="not a ticket"):
        claims_of(bytes(32) + b"\xff\xff\xff")
