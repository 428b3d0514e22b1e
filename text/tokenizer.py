"""The tokenizer of a model folder: text to token ids and back.

Covers: ``tokenizer.json`` through the ``tokenizers`` library, the model's end-of-sequence ids.
Does not cover: token by token decoding (``text.detokenizer``), chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from core.errors import Incompatible, InvalidField
from text.token_bytes import TokenBytes

TokenArray = npt.NDArray[np.int32]


class Tokenizer:
    """Encodes prompts and decodes answers. ``eos_token_ids`` are those of the model."""

    def __init__(self, backend: tokenizers.Tokenizer, eos_token_ids: tuple[int, ...] = ()) -> None:
        self._backend = backend
        self.eos_token_ids = eos_token_ids

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the eos ids from ``folder``; raises Incompatible."""
        path = Path(folder) / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise _unusable(path, "the file is missing") from error
        # The library raises bare Exception for anything wrong inside the file.
        except Exception as error:
            raise _unusable(path, str(error)) from error
        return cls(backend, read_eos_token_ids(folder))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> TokenArray:
        """Token ids of ``text``, int32 [n]. Special tokens: e.g. a leading BOS."""
        # The plain `encode` keeps the interpreter's lock: a long text would stop every thread.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return np.asarray(encoding.ids, dtype=np.int32)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def piece(self, token_id: int) -> str | None:
        """The vocabulary entry, in the spelling of the vocabulary; None if there is none."""
        return self._backend.id_to_token(token_id)

    def is_added(self, token_id: int) -> bool:
        """Whether it was added to the vocabulary as it is: special tokens and the like."""
        return token_id in self._added_tokens

    def is_special(self, token_id: int) -> bool:
        """Whether it controls the model and is left out of texts."""
        return self.is_added(token_id) and self._added_tokens[token_id].special

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def decoder_kinds(self) -> frozenset[str]:
        """Names of the decoders that make text of pieces, such as "ByteLevel"; may be empty."""
        if self._backend.decoder is None:
            return frozenset()
        config = json.loads(self._backend.decoder.__getstate__())
        chain = config.get("decoders", [config])
        return frozenset(str(decoder["type"]) for decoder in chain)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token stands for."""
        return TokenBytes(self)

    @cached_property
    def joins_bytes(self) -> bool:
        """Whether `decode` reads the joined bytes of all tokens as UTF-8.

        Elsewhere the text of a token depends on its neighbours: only byte-level decoders take each
        by itself.
        """
        return self.decoder_kinds == {"ByteLevel"}

    @cached_property
    def _added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        return self._backend.get_added_tokens_decoder()

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest vocabulary entry: bounds the text that n tokens can cover."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def anchor_ids(self) -> tuple[int, ...]:
        """Some ordinary text to decode after: decoders strip the space that starts a text."""
        return tuple(self._backend.encode("a", add_special_tokens=False).ids)


def read_eos_token_ids(folder: str | Path) -> tuple[int, ...]:
    """End-of-sequence ids by ``generation_config.json``, else by ``config.json``; may be ().

    Raises InvalidField for one that is not in the vocabulary: no model could ever draw it.
    """
    config = _read_json(Path(folder) / "config.json")
    for stated in (_read_json(Path(folder) / "generation_config.json"), config):
        found = stated.get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            _check_eos_token_ids(ids, config.get("vocab_size"))
            return tuple(ids)
    return ()


def _check_eos_token_ids(ids: list[Any], vocab_size: object) -> None:
    end = vocab_size if isinstance(vocab_size, int) else 2**31
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < end:
            fix = f"must be a token id from 0 to {end - 1}, below vocab_size of config.json"
            raise InvalidField("eos_token_id", token_id, fix)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    return loaded if isinstance(loaded, dict) else {}


def _unusable(path: Path, why: str) -> Incompatible:
    return Incompatible(
        f"{path} can't be used: {why}; import the model again with `crossdock model import`",
        reason="TOKENIZER_UNUSABLE",
        metadata={"file": str(path), "why": why},
    )
