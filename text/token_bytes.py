"""The bytes that a single token stands for, also where they are only part of a character.

Covers: byte-level vocabularies (GPT-2 and all that follow it), byte fallback (Llama 2), and any
other vocabulary by its own decoder. Special tokens stand for their names, or for nothing.
Does not cover: the text of a whole answer (``text.detokenizer``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from text.byte_level import byte_level_bytes

if TYPE_CHECKING:
    from text.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(dict[int, bytes]):
    """Looks a token up when it is first asked for; b"" of an id without a token: models may have
    more ids than their tokenizer. ``shown``: the same, with nothing of special tokens, as answers
    show it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._of_piece = self._reader(tokenizer.decoder_kinds)
        self.shown = _ShownBytes(tokenizer, self)

    def __missing__(self, token_id: int) -> bytes:
        piece = self._tokenizer.piece(token_id)
        self[token_id] = found = b"" if piece is None else self._of_piece(token_id, piece)
        return found

    def text(self, token_id: int) -> str:
        """The token by itself, with U+FFFD for bytes that are no complete character."""
        return self[token_id].decode("utf-8", "replace")

    def _reader(self, decoders: frozenset[str]) -> Callable[[int, str], bytes]:
        if "ByteLevel" in decoders:
            # Added tokens too: the decoder takes them for pieces like any other.
            return lambda _, piece: byte_level_bytes(piece)
        return self._byte_fallback if "ByteFallback" in decoders else self._decoded

    def _byte_fallback(self, token_id: int, piece: str) -> bytes:
        match = None if self._tokenizer.is_added(token_id) else _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(match[1]) if match else self._decoded(token_id, piece)

    def _decoded(self, token_id: int, piece: str) -> bytes:
        if self._tokenizer.is_added(token_id):
            return piece.encode()
        # Decoders treat the start of a text differently, so the token must not stand there.
        anchor = list(self._tokenizer.anchor_ids)
        before = len(self._tokenizer.decode(anchor))
        return self._tokenizer.decode([*anchor, token_id])[before:].encode()


class _ShownBytes(dict[int, bytes]):
    def __init__(self, tokenizer: Tokenizer, named: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._named = named

    def __missing__(self, token_id: int) -> bytes:
        found = b"" if self._tokenizer.is_special(token_id) else self._named[token_id]
        self[token_id] = found
        return found
