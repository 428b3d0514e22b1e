"""Bytes of single tokens, in each kind of vocabulary."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from text.tokenizer import Tokenizer

TEXT = "hello wörld, 漢字 and \U0001f600!"


def test_byte_level_tokens_are_pieces_of_utf8(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.token_bytes
    ids = tokenizer.encode(TEXT).tolist()
    assert b"".join(tokens[token_id] for token_id in ids) == TEXT.encode()
    assert any(tokens.text(token_id) == "\ufffd" for token_id in ids)


def test_every_byte_level_token_agrees_with_its_decoder(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.token_bytes
    for token_id in range(tokenizer.vocab_size):
        decoded = tokenizer.decode([token_id], skip_special_tokens=False)
        assert tokens.text(token_id) == decoded


def test_byte_fallback(byte_fallback_tokenizer: Tokenizer) -> None:
    tokens = byte_fallback_tokenizer.token_bytes
    ids = byte_fallback_tokenizer.encode("hello é world").tolist()
    assert b"".join(tokens[token_id] for token_id in ids) == " hello é world".encode()
    assert [tokens[token_id] for token_id in ids if len(tokens[token_id]) == 1][-2:] == [
        b"\xc3",
        b"\xa9",
    ]


def test_other_vocabularies_are_read_by_their_decoder() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "##b": 1, "[UNK]": 2}, "[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokens = Tokenizer(backend).token_bytes
    assert (tokens[0], tokens[1]) == (b" a", b"b")


@pytest.mark.parametrize("token_id", [10_000, 2**31])
def test_ids_without_a_token_are_empty(tokenizer: Tokenizer, token_id: int) -> None:
    assert tokenizer.token_bytes[token_id] == b""


def test_special_tokens_have_names_and_are_not_shown(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.token_bytes
    assert tokens[0] == b"<|im_start|>"
    assert tokens.shown[0] == b""
    [letter] = tokenizer.encode("a")
    assert tokens.shown[int(letter)] == b"a"


@pytest.mark.parametrize("piece", ["é", "naïve x", "ab"])
def test_added_tokens_are_what_the_decoder_makes_of_them(piece: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([piece])
    token_id, tokenizer = backend.token_to_id(piece), Tokenizer(backend)
    assert tokenizer.token_bytes.text(token_id) == tokenizer.decode([token_id])
    assert tokenizer.token_bytes.shown[token_id] == tokenizer.token_bytes[token_id]


def test_all_of_a_real_vocabulary(smollm2: Path) -> None:
    tokenizer = Tokenizer.load(smollm2)
    tokens = tokenizer.token_bytes
    every = range(tokenizer.vocab_size)
    decoded = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in every]
    assert [tokens.text(token_id) for token_id in every] == decoded
