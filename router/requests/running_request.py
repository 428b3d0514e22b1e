"""One running request, and what the door and the metrics are told of it.

Does not cover: what is done with it (``router.requests.dispatcher``), its decisions
(``router.flow.flow``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from core.lifecycle import State
from core.request import AttemptKey, RequestKey
from router.admission.messages import Arrived, Ended
from router.flow.answer_progress import AnswerProgress
from router.flow.flow import Flow
from router.flow.messages import Finish
from router.metrics.metrics import EndedRequest
from router.requests.answer_stream import Choice, Prompt, Receiver
from router.requests.assignments import Assignment
from router.routing.routing_state import RoutedPrompt
from router.slo import slo_class


@dataclass(slots=True)
class RunningAnswer:
    """One of the n answers: all that a further token of it needs, in few places of the memory. The
    request is none of it, as nothing may keep that. ``told``: what the client has of it;
    ``last_output_at`` in seconds."""

    key: RequestKey
    tenant: str
    index: int
    told: AnswerProgress
    choice: Choice
    last_output_at: float | None = None


@dataclass(slots=True)
class RunningRequest:
    """``assignment``: of the latest attempt. ``refused``: by the door. ``broken``: by a defect, so
    that its lifecycle may say anything. ``first_number``: `AnswerNumbers.give`. Times in seconds.
    """

    prompt: Prompt
    routed: RoutedPrompt
    flow: Flow
    receiver: Receiver
    assignment: Assignment | None = None
    dispatched_at: float = 0.0
    expected_cached: int = 0
    first_number: int = 0
    refused: bool = False
    broken: bool = False
    finishes: list[Finish] = field(default_factory=list)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    answers: list[RunningAnswer] = field(init=False)

    def __post_init__(self) -> None:
        key = self.prompt.key
        self.answers = [
            RunningAnswer(key, key.tenant, index, told, self.receiver.choice(index))
            for index, told in enumerate(self.flow.answers)
        ]

    @property
    def is_streaming(self) -> bool:
        """Something of it came."""
        return any(answer.last_output_at is not None for answer in self.answers)

    @property
    def attempt_key(self) -> AttemptKey:
        return AttemptKey(self.prompt.key, self.flow.lifecycle.attempt)

    @property
    def slo_class(self) -> str:
        return slo_class(self.prompt.priority)

    def arrived(self, ttft_s: float) -> Arrived:
        """For the door. ``ttft_s``: within which a first token is wanted."""
        prompt, due = self.prompt, self.prompt.arrived + ttft_s
        return Arrived(
            prompt.key,
            prompt.priority,
            due if prompt.deadline is None else min(due, prompt.deadline),
            len(prompt.tokens),
            prompt.sampling.n,
            prompt.sampling.max_tokens,
            prompt.with_others,
        )

    def ended(self) -> Ended:
        """For the door. What never went to a worker cost nothing."""
        lifecycle = self.flow.lifecycle
        cached = max((finish.cached_tokens for finish in self.finishes), default=0)
        computed = len(self.prompt.tokens) - cached if lifecycle.attempts else 0
        return Ended(self.prompt.key, computed, self.flow.tokens_delivered)

    def counted(self) -> EndedRequest:
        """For the metrics."""
        return EndedRequest(
            self.prompt.key.tenant,
            State.FAILED if self.broken else self.flow.lifecycle.state,
            len(self.prompt.tokens),
            self.expected_cached,
            self.finishes,
            self.slo_class,
        )
