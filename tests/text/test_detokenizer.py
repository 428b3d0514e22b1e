"""Token by token gives the same text as all at once, and never half a character."""

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from text.detokenizer import Detokenizer, WindowDetokenizer, new_detokenizer
from text.tokenizer import Tokenizer


def all_pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """By the quick way, if the tokenizer has one; the general one must say the same."""
    pieces = all_pieces(new_detokenizer(tokenizer), ids)
    general = all_pieces(WindowDetokenizer(tokenizer), ids)
    assert "".join(pieces) == "".join(general)
    return pieces


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_any_text_comes_back_in_pieces(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_an_emoji_of_several_tokens_is_held_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂").tolist()
    assert len(ids) > 1
    assert pieces_of(tokenizer, ids) == [*[""] * (len(ids) - 1), "🙂", ""]


@given(ids=st.lists(st.integers(2, 300), max_size=80))
@settings(deadline=None)
def test_any_token_ids_give_the_text_of_a_whole_decode(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    ids = [i for i in ids if i < tokenizer.vocab_size]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_long_run_of_broken_bytes_is_not_held_for_ever(tokenizer: Tokenizer) -> None:
    lead_byte = tokenizer.encode("🙂").tolist()[0]
    detokenizer = WindowDetokenizer(tokenizer)
    pieces = [detokenizer.push(lead_byte) for _ in range(200)]
    assert sum(map(len, pieces)) >= 150
    assert len(detokenizer._window) < 64


def test_bytes_that_begin_no_character_are_shown_at_once(tokenizer: Tokenizer) -> None:
    lead_byte = tokenizer.encode("🙂").tolist()[0]
    detokenizer = new_detokenizer(tokenizer)
    assert [detokenizer.push(lead_byte) for _ in range(3)] == ["", "\ufffd", "\ufffd"]
    assert detokenizer.finish() == "\ufffd"


@given(ids=st.lists(st.integers(0, 12), max_size=20))
def test_added_tokens_are_spelled_in_bytes_like_all_others(ids: list[int]) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "Ã": 1, "©": 2, "Ġb": 3, "ð": 4}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["é", "Ġx", "日", "ÃĠ"])
    backend.add_special_tokens(["<s>", "Ã"])
    tokenizer = Tokenizer(backend)
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello").tolist()
    assert "".join(pieces_of(tokenizer, [0, *hello, *[1] * 40, *hello])) == "hellohello"


def test_consecutive_byte_fallback_characters(byte_fallback_tokenizer: Tokenizer) -> None:
    ids = byte_fallback_tokenizer.encode("hello €€🙂🙂 world").tolist()
    assert "".join(pieces_of(byte_fallback_tokenizer, ids)) == " hello €€🙂🙂 world"


def test_the_space_before_the_first_word_is_kept(byte_fallback_tokenizer: Tokenizer) -> None:
    [world] = byte_fallback_tokenizer.encode("world").tolist()
    assert pieces_of(byte_fallback_tokenizer, [world]) == [" world", ""]
