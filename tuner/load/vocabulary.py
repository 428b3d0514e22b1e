"""Which token ids make ordinary prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from core.errors import Incompatible
from text.tokenizer import TokenArray, Tokenizer

# With fewer of a kind the prompts would hardly differ.
_ENOUGH = 64

_KINDS: tuple[Callable[[str], object], ...] = (
    # Whole words that bring their space along: as text they are cut into the same tokens again.
    re.compile(r" [A-Za-z]{2,}").fullmatch,
    lambda piece: piece.isascii() and piece.isprintable(),
    lambda piece: True,
)


def ordinary_ids(tokenizer: Tokenizer) -> TokenArray:
    """Ids of words if the vocabulary has them, else of printable ASCII, else of any text; int32.

    Never special tokens. Raises ``Incompatible`` if the tokenizer has no text at all.
    """
    # Some decoders drop the space that starts a text, so each id is read behind other text.
    anchor = list(tokenizer.anchor_ids)
    skipped = len(tokenizer.decode(anchor))
    pieces = [tokenizer.decode([*anchor, i])[skipped:] for i in range(tokenizer.vocab_size)]
    choices = [_matching(pieces, accepts) for accepts in _KINDS]
    found = next((ids for ids in choices if len(ids) >= _ENOUGH), choices[-1])
    if not len(found):
        raise Incompatible("the tokenizer has no tokens of text", reason="TOKENIZER_UNUSABLE")
    return found


def ids_below(vocab_size: int, without: Iterable[int]) -> TokenArray:
    """All ids of a vocabulary of which nothing else is known but its size; int32."""
    return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.fromiter(without, np.int32))


def _matching(pieces: list[str], accepts: Callable[[str], object]) -> TokenArray:
    return np.array([i for i, p in enumerate(pieces) if p and accepts(p)], dtype=np.int32)
