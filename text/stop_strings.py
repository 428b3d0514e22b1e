"""Finds stop strings in text that comes in pieces, wherever the borders of the pieces lie."""

from __future__ import annotations


class StopStrings:
    """Holds back text that may be the start of a stop string; the stop string is never emitted.

    Of several matches the one that is complete first counts, and of those the longest: so the
    outcome does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text to emit, whether a stop string was found). After a find, push no more."""
        if not self._stop:
            return text, False
        buffer = self._held + text
        match = self._first_match(buffer)
        if match is not None:
            self._held = ""
            return buffer[:match], True
        keep = max(_possible_start(buffer, stop) for stop in self._stop)
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return buffer[:cut], False

    def finish(self) -> str:
        """The text that was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> int | None:
        starts = ((buffer.find(stop), stop) for stop in self._stop)
        found = [(start + len(stop), start) for start, stop in starts if start >= 0]
        return min(found)[1] if found else None


def _possible_start(buffer: str, stop: str) -> int:
    """Length of the longest end of ``buffer`` that begins ``stop`` without being all of it."""
    at = buffer.find(stop[0], max(0, len(buffer) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(buffer[at:]):
            return len(buffer) - at
        at = buffer.find(stop[0], at + 1)
    return 0
