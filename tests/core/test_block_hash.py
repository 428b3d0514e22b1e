"""Chained block hashes: equal only for equal tokens from the start, under the same salt."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.block_hash import block_hashes, make_salt

tokens_of = st.lists(st.integers(0, 50_000), max_size=40).map(lambda x: np.array(x, dtype=np.int32))


@given(tokens_of)
def test_only_full_blocks_have_a_hash(tokens: np.ndarray) -> None:
    assert len(block_hashes(tokens, 4, salt=1)) == len(tokens) // 4


@given(tokens_of, tokens_of)
def test_equal_beginnings_have_equal_hashes(shared: np.ndarray, rest: np.ndarray) -> None:
    full = len(shared) // 4
    both = block_hashes(np.concatenate([shared, rest]), 4, salt=1)
    assert both[:full].tolist() == block_hashes(shared, 4, salt=1).tolist()


@given(tokens_of, st.integers(0, 10))
def test_a_chain_can_be_continued_from_any_block(tokens: np.ndarray, cut: int) -> None:
    whole = block_hashes(tokens, 4, salt=1)
    cut = min(cut, len(whole))
    parent = int(whole[cut - 1]) if cut else None
    assert (
        block_hashes(tokens[cut * 4 :], 4, salt=1, parent=parent).tolist() == whole[cut:].tolist()
    )


def test_one_token_changes_its_block_and_all_after_it() -> None:
    tokens = np.arange(16, dtype=np.int32)
    changed = tokens.copy()
    changed[5] += 1
    same = block_hashes(tokens, 4, salt=1) == block_hashes(changed, 4, salt=1)
    assert same.tolist() == [True, False, False, False]


def test_other_salts_share_no_hash() -> None:
    tokens = np.arange(16, dtype=np.int32)
    first = block_hashes(tokens, 4, make_salt(b"secret", "model", "alice"))
    second = block_hashes(tokens, 4, make_salt(b"secret", "model", "bob"))
    assert not set(first.tolist()) & set(second.tolist())


def test_a_salt_depends_on_the_secret_and_on_where_its_parts_end() -> None:
    salts = {
        make_salt(b"secret", "ab", "c"),
        make_salt(b"secret", "a", "bc"),
        make_salt(b"other", "ab", "c"),
    }
    assert len(salts) == 3
