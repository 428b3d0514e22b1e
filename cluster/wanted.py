"""How many workers of each pool an operator wants, and which numbers can't be served."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.errors import InvalidField, PreconditionFailed
from core.pool_config import MAX_REPLICAS


@dataclass(frozen=True, slots=True)
class Wanted:
    prefill: int
    decode: int

    def of(self, pool: str) -> int:
        return self.prefill if pool == "prefill" else self.decode

    def plus(self, pool: str, count: int) -> Wanted:
        """As many more of ``pool``, or fewer if ``count`` is negative."""
        if pool == "prefill":
            return replace(self, prefill=self.prefill + count)
        return replace(self, decode=self.decode + count)

    def check_range(self) -> None:
        """Raises ``InvalidField``, naming the pool and its limits."""
        if not 0 <= self.prefill <= MAX_REPLICAS:
            raise InvalidField("prefill", self.prefill, f"must be between 0 and {MAX_REPLICAS}")
        if not 1 <= self.decode <= MAX_REPLICAS:
            fix = f"must be between 1 and {MAX_REPLICAS}: without one nobody streams answers"
            raise InvalidField("decode", self.decode, fix)

    def check_servable(self, prefill_required: bool, fix: str) -> None:
        """Raises ``PreconditionFailed`` if nobody could decode, or nobody may prefill."""
        if self.decode < 1:
            raise refusal(f"that would leave no decode worker, and nobody to stream answers: {fix}")
        if self.prefill < 1 and prefill_required:
            raise refusal(
                "that would leave no prefill worker, and with router.disaggregation: always "
                f"nobody else may prefill: {fix}"
            )


def refusal(message: str) -> PreconditionFailed:
    """What was asked for can't be done as things are."""
    return PreconditionFailed(message, reason="NOT_POSSIBLE_NOW")
