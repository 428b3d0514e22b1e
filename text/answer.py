"""The text of one answer: detokenizing and stop strings in one, as a decode worker uses them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from text.detokenizer import new_detokenizer
from text.stop_strings import StopStrings
from text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text to send now, and whether a stop string ended the answer."""

    text: str
    stopped: bool


class AnswerText:
    """Turns the tokens of one answer into the text that the client may see."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), min_tokens: int = 0
    ) -> None:
        """Stop strings count only in text that comes with or after token ``min_tokens``."""
        self._detokenizer = new_detokenizer(tokenizer)
        self._stop = StopStrings(stop) if stop else None
        self._exempt = max(0, min_tokens - 1)

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        """Text that is certain after these tokens. After ``stopped`` push no more."""
        if self._stop is None:
            return TextDelta("".join([self._detokenizer.push(i) for i in token_ids]), False)
        parts: list[str] = []
        for token_id in token_ids:
            text = self._detokenizer.push(token_id)
            if self._exempt > 0:
                self._exempt -= 1
                parts.append(text)
                continue
            text, stopped = self._stop.push(text)
            parts.append(text)
            if stopped:
                return TextDelta("".join(parts), True)
        return TextDelta("".join(parts), False)

    def finish(self) -> str:
        """The rest, when the answer ended for another reason than a stop string."""
        text = self._detokenizer.finish()
        if self._stop is None:
            return text
        text, stopped = self._stop.push(text)
        return text if stopped else text + self._stop.finish()
