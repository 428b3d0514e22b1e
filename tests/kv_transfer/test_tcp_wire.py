"""The bytes of the TCP transport, without sockets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.handoff import Piece
from core.lease_events import PieceCopy
from kv_transfer import tcp_wire as wire

TOKEN = b"t" * wire.TOKEN_BYTES


@pytest.mark.parametrize("runs", [[[0, 8]], [[0, 2], [2, 3]], [[5, 1], [7, 1]]])
def test_a_part_says_on_the_other_side_what_it_said_on_this(runs: list[list[int]]) -> None:
    data = wire.pack_part(np.array(runs))
    header, rest = data[: wire.PART_HEADER_BYTES], data[wire.PART_HEADER_BYTES :]
    assert len(rest) == wire.read_part_header(header) * wire.RUN_BYTES
    assert wire.read_part(rest, 8).tolist() == runs


@pytest.mark.parametrize(
    "runs",
    [
        [[0, 9]],
        [[8, 1]],
        [[0, 0]],
        [[-1, 2]],
        [[0, 4], [3, 2]],
        [[4, 2], [0, 2]],
        [[0, 2], [2**63 - 1, 2]],
        [[2**63 - 8, 2**63 - 8]],
    ],
)
def test_a_part_that_is_not_in_a_block_is_refused(runs: list[list[int]]) -> None:
    with pytest.raises(ConnectionError, match="a part"):
        wire.read_part(np.array(runs, "<i8").tobytes(), 8)


@pytest.mark.parametrize("count", [0, wire.MAX_RUNS + 1, 2**32 - 1])
def test_a_part_of_too_many_runs_or_none_is_refused(count: int) -> None:
    with pytest.raises(ConnectionError, match=f"{count} runs"):
        wire.read_part_header(count.to_bytes(4, "little"))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)), min_size=1))
def test_a_request_says_on_the_other_side_what_it_said_on_this(
    asked: list[tuple[int, int]],
) -> None:
    copies = [PieceCopy(0, Piece(block, generation, ()), 0) for block, generation in asked]
    data = wire.pack_request(7, copies)
    header, rest = data[: wire.HEADER_BYTES], data[wire.HEADER_BYTES :]
    assert wire.read_request_header(header) == (len(asked), 7)
    assert len(rest) == len(asked) * wire.PIECE_BYTES
    assert [tuple(piece) for piece in wire.read_pieces(rest).tolist()] == asked


def test_only_blocks_of_the_pool_in_the_asked_generation_are_present() -> None:
    asked = [(0, 5), (1, 5), (2, 7), (3, 0), (2**32 - 1, 7)]
    copies = [PieceCopy(0, Piece(block, generation, ()), 0) for block, generation in asked]
    pieces = wire.read_pieces(wire.pack_request(1, copies)[wire.HEADER_BYTES :])
    present = wire.find_present(pieces, np.array([5, 6, 7], np.uint64))
    assert present.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("count", [0, wire.MAX_PIECES + 1, 2**32 - 1])
def test_a_request_for_too_many_pieces_or_none_is_refused(count: int) -> None:
    with pytest.raises(ConnectionError, match=f"{count} pieces"):
        wire.read_request_header(count.to_bytes(4, "little") + bytes(8))


def test_an_answer_must_fit_its_request() -> None:
    answer = wire.pack_answer(3, np.array([True, False]))
    assert wire.read_answer(answer, 3, 2).tolist() == [True, False]
    for damaged, number in [(answer, 4), (answer[:-1] + b"\x02", 3), (b"\x03" + answer[1:], 3)]:
        with pytest.raises(ConnectionError, match="does not fit"):
            wire.read_answer(damaged, number, 2)


def test_only_who_knows_a_token_can_prove_it() -> None:
    ours = wire.Challenges(wire.new_challenge(), wire.new_challenge())
    proof = ours.pack_proof(TOKEN)
    others = [b"o" * wire.TOKEN_BYTES]
    assert wire.Challenges.read_proof(ours.prefill, proof, [*others, TOKEN]) == (ours, TOKEN)
    assert wire.Challenges.read_proof(ours.prefill, proof, others) is None
    assert wire.Challenges.read_proof(ours.prefill, proof, []) is None


def test_what_was_proved_on_one_connection_proves_nothing_on_another() -> None:
    heard = wire.Challenges(wire.new_challenge(), wire.new_challenge())
    proof = heard.pack_proof(TOKEN)
    assert wire.Challenges.read_proof(wire.new_challenge(), proof, [TOKEN]) is None
    again = wire.Challenges(heard.prefill, wire.new_challenge())
    assert again.probe(TOKEN, 64) != heard.probe(TOKEN, 64)


def test_a_greeting_of_somebody_else_is_named() -> None:
    challenge = wire.new_challenge()
    greeting = wire.pack_greeting(challenge)
    assert wire.read_greeting(greeting) == challenge
    with pytest.raises(ConnectionError, match="not a prefill worker"):
        wire.read_greeting(b"HTTP/1.1" + greeting[8:])
    with pytest.raises(ConnectionError, match="version 9"):
        wire.read_greeting(greeting[:8] + b"\x09\x00" + greeting[10:])
