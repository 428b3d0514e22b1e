"""Log-probabilities as the two OpenAI endpoints write them: with text and bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from core.step import TokenLogprobs
from text.token_bytes import TokenBytes

Json = dict[str, Any]

# OpenAI's value for "hardly possible"; JSON has no infinities.
LOWEST_LOGPROB = -9999.0


class LogprobsWriter(Protocol):
    """Writes those of one choice, in the order of its tokens."""

    def part(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Json: ...


class ChatLogprobs:
    """``{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}``."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens

    def part(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Json:
        content = [
            {
                **self._entry(token_id, of_token.logprob),
                "top_logprobs": [self._entry(*candidate) for candidate in _top(of_token)],
            }
            for token_id, of_token in zip(token_ids, logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self._tokens.text(token_id),
            "logprob": _finite(logprob),
            "bytes": list(self._tokens[token_id]),
        }


class CompletionLogprobs:
    """``{tokens, token_logprobs, top_logprobs, text_offset}``; offsets count characters.

    A token that is no complete text is written as OpenAI writes it, ``bytes:\\xf0\\x9f``.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def part(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Json:
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [_finite(of_token.logprob) for of_token in logprobs],
            "top_logprobs": [
                self._likeliest(token_id, of_token)
                for token_id, of_token in zip(token_ids, logprobs, strict=True)
            ],
            "text_offset": [self._advance(token_id) for token_id in token_ids],
        }

    def _likeliest(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
        """The chosen token is always among them, as OpenAI has it."""
        named = {self._name(token_id): _finite(logprobs.logprob)}
        top = {self._name(candidate): _finite(logprob) for candidate, logprob in _top(logprobs)}
        return {**top, **named}

    def _name(self, token_id: int) -> str:
        raw = self._tokens[token_id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _advance(self, token_id: int) -> int:
        start = self._offset
        self._offset += len(self._decoder.decode(self._tokens.shown[token_id]))
        return start


def joined(parts: Sequence[Json]) -> Json | None:
    """The parts of one choice as one; None if there is none."""
    if not parts:
        return None
    lists = {name for name, value in parts[0].items() if isinstance(value, list)}
    whole = dict(parts[0])
    for name in lists:
        whole[name] = [entry for part in parts for entry in part[name]]
    return whole


def _top(logprobs: TokenLogprobs) -> Iterator[tuple[int, float]]:
    return zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB
