"""Numbers by which workers name the answers of attempts, so that a token brings no key with it.

A number is one answer of one attempt and is never given again, so what a worker sends of an attempt
that is over is nobody's. Does not cover: what is done with a token
(``router.requests.step_tokens``).
"""

from __future__ import annotations

from router.requests.running_request import RunningAnswer, RunningRequest


class AnswerNumbers:
    """Of the latest attempt of each running request."""

    def __init__(self) -> None:
        # 0 stands for none on the wire.
        self._next = 1
        self._known: dict[int, RunningAnswer] = {}
        # What is known of a number; None: it is over.
        self.find = self._known.get

    def give(self, running: RunningRequest) -> int:
        """The number of the first answer of an attempt that begins; the others follow."""
        self.take_back(running)
        first = self._next
        self._next += len(running.answers)
        self._known.update(enumerate(running.answers, first))
        running.first_number = first
        return first

    def take_back(self, running: RunningRequest) -> None:
        """The attempt, or the request, is over."""
        first = running.first_number
        if first:
            for number in range(first, first + len(running.answers)):
                del self._known[number]
            running.first_number = 0
