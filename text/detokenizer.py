"""Token ids in, text out, as they come.

Covers: never half a UTF-8 character, the spaces between tokens as in a decode of the whole.
Does not cover: stop strings (``text.stop_strings``).
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping
from typing import Protocol

from text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most 4 bytes, so a token boundary can cut at most 3 of them off.
_MAX_CUT = 3
_MAX_PENDING = 16


class Detokenizer(Protocol):
    """Decodes one answer token by token, at a cost per token that doesn't grow with its length."""

    def push(self, token_id: int) -> str:
        """Text that is certain now; "" while a character is incomplete."""

    def finish(self) -> str:
        """What is pending, with U+FFFD for a character that will never be complete."""


def new_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """The quickest that gives the text of a whole decode with this tokenizer."""
    if tokenizer.joins_bytes:
        return ByteDetokenizer(tokenizer.token_bytes.shown)
    return WindowDetokenizer(tokenizer)


class ByteDetokenizer:
    """For tokenizers of which each token stands for bytes of its own (`Tokenizer.joins_bytes`).

    Both decoders put one U+FFFD for each longest piece that begins a character and ends too early,
    so it doesn't matter where the bytes are cut.
    """

    def __init__(self, decoded: Mapping[int, bytes]) -> None:
        self._decoded = decoded
        self._pending = b""

    def push(self, token_id: int) -> str:
        raw = self._pending + self._decoded[token_id]
        text, used = utf_8_decode(raw, "replace", False)
        self._pending = raw[used:]
        return text

    def finish(self) -> str:
        return utf_8_decode(self._pending, "replace", True)[0]


class WindowDetokenizer:
    """For any tokenizer.

    Only a window of tokens is decoded: those whose text was emitted last (decoders need what
    stands before a token to know its spaces), then those still pending. A window starts where
    text was complete. The method with two offsets is that of TGI and vLLM.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = list(tokenizer.anchor_ids)
        self._context = len(self._window)
        self._emitted = len(tokenizer.decode(self._window))

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        pending = len(self._window) - self._context
        if pending >= _MAX_PENDING:
            return self._give_up_waiting(text)
        if text.endswith(_REPLACEMENT) or len(text) <= self._emitted:
            return ""
        return self._emit(text, len(text))

    def finish(self) -> str:
        return self._emit(text := self._tokenizer.decode(self._window), len(text))

    def _emit(self, text: str, end: int) -> str:
        new = text[self._emitted : end]
        self._window = self._window[self._context :] or self._window
        self._context = len(self._window)
        self._emitted = self._certain_length(self._tokenizer.decode(self._window))
        return new

    def _give_up_waiting(self, text: str) -> str:
        """A long run of bytes that are no text, or of tokens without text: let the window move."""
        end = self._certain_length(text)
        if end > self._emitted:
            return self._emit(text, end)
        del self._window[self._context : -(_MAX_CUT + 1)]
        return ""

    @staticmethod
    def _certain_length(text: str) -> int:
        kept = len(text.rstrip(_REPLACEMENT))
        return max(kept, len(text) - _MAX_CUT)
