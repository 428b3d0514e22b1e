"""How far one of the n answers of a request has come.

Does not cover: what is decided from it (``router.flow.flow``), the client's bytes
(``router.requests.answer_stream``).
"""

from __future__ import annotations

from dataclasses import dataclass

from router.placement import WorkerId


@dataclass(slots=True)
class AnswerProgress:
    """What the client has of it.

    ``source``: the worker from which more of it may come, once it has begun and until it ends.
    """

    tokens: int = 0
    first_token_at: float | None = None
    finished: bool = False
    source: WorkerId | None = None

    def continues(self, worker: WorkerId, tokens: int) -> bool:
        """Whether so many tokens of the present attempt are more of an answer that has begun; then
        they are counted, and the client gets them. The same as `Flow.handle` does with an output
        that ends nothing, in a small part of the time: most events are such outputs."""
        if worker is not self.source and worker != self.source:
            return False
        self.tokens += tokens
        return True
