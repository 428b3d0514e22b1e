"""Which requests a decode worker could finish if it had nothing else to do.

Does not cover: whether there is room now (``decode_worker.admission``).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import InvalidField
from core.request import SamplingParams


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """``max_num_seqs``: that run at a time; ``pool_tokens``: that the KV pool holds;
    ``max_positions``: tokens of the longest sequence that the model can compute, if bounded."""

    max_num_seqs: int
    pool_tokens: int
    max_positions: int | None = None

    def check(self, prompt_length: int, params: SamplingParams) -> None:
        """Raises `InvalidField` if the request could not finish even alone on this worker."""
        if params.n > self.max_num_seqs:
            fix = f"this worker runs at most {self.max_num_seqs} sequences at a time"
            raise InvalidField("n", params.n, fix)
        self._check_length(
            prompt_length, params, self.pool_tokens, "that this worker's KV pool holds"
        )
        if self.max_positions is not None:
            self._check_length(
                prompt_length, params, self.max_positions, "at which this model ends"
            )

    @staticmethod
    def _check_length(prompt_length: int, params: SamplingParams, limit: int, why: str) -> None:
        if prompt_length + params.max_tokens > limit:
            raise InvalidField(
                "max_tokens",
                params.max_tokens,
                f"prompt ({prompt_length}) + max_tokens may not exceed the {limit} tokens {why}",
            )
