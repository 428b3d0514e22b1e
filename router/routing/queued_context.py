"""How much context the prompts that wait have, as far as this router knows: that of its own.

Workers tell how many tokens of prompts wait, and not at which positions. Attention over the
thousandth token of a prompt takes longer than over the first.
"""

from __future__ import annotations

# Of the latest prompts: each counts so much of the one after it.
_FADING = 0.95


class QueuedContext:
    """A fading mean over the tokens that were sent to be computed."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._context = 0.0

    def add(self, uncached: int, prompt_tokens: int) -> None:
        """The last ``uncached`` tokens of a prompt were sent."""
        self._tokens = _FADING * self._tokens + uncached
        self._context = _FADING * self._context + uncached * (prompt_tokens - uncached / 2)

    @property
    def mean(self) -> float:
        """Tokens that one of them attends to; 0 before the first."""
        return self._context / self._tokens if self._tokens else 0.0
