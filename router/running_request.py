"""One running request, and what the door and the metrics are told of it.

Does not cover: what is done with it (``router.dispatcher``), its decisions (``router.flow``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from core.lifecycle import State
from core.request import AttemptKey
from router.admission_messages import Arrived, Ended
from router.answer_stream import Prompt, Receiver
from router.assignments import Assignment
from router.flow import Flow
from router.flow_messages import Finish
from router.metrics import EndedRequest
from router.routing_state import RoutedPrompt
from router.slo import slo_class


@dataclass(slots=True)
class RunningRequest:
    """``assignment``: of the latest attempt. ``refused``: by the door. ``broken``: by a defect, so
    that its lifecycle may say anything. ``last_output_at``: of each answer. ``first_number``:
    `AnswerNumbers.give`. Times in seconds."""

    prompt: Prompt
    routed: RoutedPrompt
    flow: Flow
    answers: Receiver
    assignment: Assignment | None = None
    dispatched_at: float = 0.0
    expected_cached: int = 0
    first_number: int = 0
    refused: bool = False
    broken: bool = False
    finishes: list[Finish] = field(default_factory=list)
    last_output_at: dict[int, float] = field(default_factory=dict)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

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
        return Ended(self.prompt.key, computed, lifecycle.tokens_delivered)

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
