"""The bytes that a single token stands for, also where they are only part of a character.

Covers: byte-level vocabularies (GPT-2 and all that follow it), byte fallback (Llama 2), and any
other vocabulary by its own decoder. Special tokens stand for their names.
Does not cover: the text of a whole answer (``text.detokenizer``).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from text.byte_level import byte_level_bytes
from text.tokenizer import Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Looks tokens up; remembers each one it was asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._of_piece = self._reader(tokenizer.decoder_kinds)

    def __getitem__(self, token_id: int) -> bytes:
        """b"" for an id without a token: models may have more ids than their tokenizer."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._look_up(token_id)
        return found

    def shown(self, token_id: int) -> bytes:
        """What an answer shows of it: nothing of special tokens."""
        return b"" if self._tokenizer.is_special(token_id) else self[token_id]

    def text(self, token_id: int) -> str:
        """The token by itself, with U+FFFD for bytes that are no complete character."""
        return self[token_id].decode("utf-8", "replace")

    def _look_up(self, token_id: int) -> bytes:
        piece = self._tokenizer.piece(token_id)
        if piece is None:
            return b""
        if self._tokenizer.is_added(token_id):
            return piece.encode()
        return self._of_piece(token_id, piece)

    def _reader(self, decoders: frozenset[str]) -> Callable[[int, str], bytes]:
        if "ByteLevel" in decoders:
            return lambda _, piece: byte_level_bytes(piece)
        return self._byte_fallback if "ByteFallback" in decoders else self._decoded

    def _byte_fallback(self, token_id: int, piece: str) -> bytes:
        match = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(match[1]) if match else self._decoded(token_id, piece)

    def _decoded(self, token_id: int, piece: str) -> bytes:
        # Decoders treat the start of a text differently, so the token must not stand there.
        anchor = list(self._tokenizer.anchor_ids)
        before = len(self._tokenizer.decode(anchor))
        return self._tokenizer.decode([*anchor, token_id])[before:].encode()
