"""Chained block hashes: equal only for equal tokens from the start, under the same salt."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from core import block_hash
from core.block_hash import are_hashes_compiled, block_hashes, make_salt
from native import library

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


@given(
    st.integers(1, 300),
    st.sampled_from([1, 15, 16, 17, 70]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32),
)
def test_each_hash_is_xxh3_of_a_block_seeded_by_the_one_before(
    size: int, count: int, salt: int, seed: int
) -> None:
    tokens = np.random.default_rng(seed).integers(0, 2**31, size * count + size // 2, np.int32)
    expected, previous = [], salt
    for start in range(0, size * count, size):
        previous = xxhash.xxh3_64_intdigest(tokens[start : start + size].tobytes(), previous)
        expected.append(previous)
    assert block_hashes(tokens, size, salt).tolist() == expected


def test_long_prompts_are_hashed_by_the_compiled_loop() -> None:
    if not library.is_available():
        pytest.skip(library.choice().reason)
    assert are_hashes_compiled()


@pytest.mark.parametrize("lacking", ["library", "function"])
def test_without_the_compiled_loop_hashes_are_the_same(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.arange(4000, dtype=np.int32)
    usual = block_hashes(tokens, 16, salt=5).tolist()
    if lacking == "library":
        none = library.Choice(None, None, None, "not built")
        monkeypatch.setattr(library, "choice", lambda: none)
    else:
        monkeypatch.setattr(block_hash.importlib, "import_module", lambda name: pytest)
    monkeypatch.setattr(block_hash, "_long_chain", block_hash._long_chain.__wrapped__)
    assert not are_hashes_compiled()
    assert block_hashes(tokens, 16, salt=5).tolist() == usual


def test_tokens_of_a_message_can_be_hashed_though_nobody_may_change_them() -> None:
    tokens = np.arange(4000, dtype=np.int32)
    fixed = np.frombuffer(tokens.tobytes(), dtype=np.int32)
    assert block_hashes(fixed, 16, 1).tolist() == block_hashes(tokens[::1], 16, 1).tolist()
    spread = np.repeat(tokens, 2)[::2]
    assert block_hashes(spread, 16, 1).tolist() == block_hashes(tokens, 16, 1).tolist()
