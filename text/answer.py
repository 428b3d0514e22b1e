"""The text of one answer: detokenizing and stop strings in one, as a decode worker uses them."""

from __future__ import annotations

from text.detokenizer import new_detokenizer
from text.stop_strings import StopStrings
from text.tokenizer import Tokenizer


class AnswerText:
    """Turns the tokens of one answer into the text that the client may see."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), min_tokens: int = 0
    ) -> None:
        """Stop strings count only in text that comes with or after token ``min_tokens``."""
        self._detokenizer = new_detokenizer(tokenizer)
        self._stop = StopStrings(stop) if stop else None
        self._exempt = max(0, min_tokens - 1)

    def push(self, token_id: int) -> tuple[str, bool]:
        """(text that is certain now, whether a stop string ended the answer). After one did, push
        no more."""
        text = self._detokenizer.push(token_id)
        if self._stop is None:
            return text, False
        if self._exempt > 0:
            self._exempt -= 1
            return text, False
        return self._stop.push(text)

    def finish(self) -> str:
        """The rest, when the answer ended for another reason than a stop string."""
        text = self._detokenizer.finish()
        if self._stop is None:
            return text
        text, stopped = self._stop.push(text)
        return text if stopped else text + self._stop.finish()
