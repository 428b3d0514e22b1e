"""What one tenant has under way, and whether its limits allow more. Pure.

Does not cover: its turn among others (``router.admission.fair_queue``).
"""

from __future__ import annotations

from core.errors import CrossdockError, InvalidField, Overloaded
from core.tenants import Tenant
from router.admission.tenant_sums import BudgetsLeft
from router.admission.token_bucket import TokenBucket, request_budget, token_budget

# Of an answer, as long as none of the tenant's has ended.
_FIRST_EXPECTED = 128.0
# Each answer counts so much of the one after it.
_FADING = 0.9


class TenantAccount:
    """``block_size``: tokens of a KV block. Times in seconds."""

    def __init__(self, tenant: Tenant, block_size: int) -> None:
        limits = tenant.limits
        self.tenant = tenant
        self.sequences = 0
        self.blocks = 0
        self._block_size = block_size
        self._expected = _FIRST_EXPECTED
        self._part = 1.0
        self._of_requests, self._of_tokens = request_budget(limits), token_budget(limits)
        self._requests = None if self._of_requests is None else TokenBucket(*self._of_requests)
        self._tokens = None if self._of_tokens is None else TokenBucket(*self._of_tokens)

    def allow(self, part: float, now: float) -> None:
        """This router may let so much of each limit in, 1 for all of it."""
        self._part = part
        if self._requests is not None and self._of_requests is not None:
            self._requests.become(self._of_requests.part(part), now)
        if self._tokens is not None and self._of_tokens is not None:
            self._tokens.become(self._of_tokens.part(part), now)

    def expected_tokens(self, answers: int, max_tokens: int) -> int:
        """Of all answers of a request: as many as the tenant's latest ones had."""
        return answers * min(max_tokens, round(self._expected))

    def blocks_of(self, prompt_tokens: int, answers: int, max_tokens: int) -> int:
        """The most that it may take: an expected length would let long answers take what is
        others'. The prompt's full blocks are shared by its answers."""
        shared = prompt_tokens // self._block_size
        own = -(-(prompt_tokens + max_tokens) // self._block_size) - shared
        return shared + answers * own

    def refusal(self, answers: int) -> CrossdockError | None:
        """Why a request may never come."""
        most = self.tenant.limits.concurrent_sequences
        if most is not None and answers > most:
            return InvalidField("n", answers, f"at most {most} sequences at a time for this tenant")
        return None

    def over_budget(self, requests: int, tokens: int, now: float) -> CrossdockError | None:
        """Why so many at once may not come now."""
        both = (
            ("requests_per_second", self._requests, requests),
            ("tokens_per_minute", self._tokens, tokens),
        )
        for name, bucket, cost in both:
            wait = 0.0 if bucket is None else bucket.wait_s(cost, now)
            if wait > 0:
                return over_limit(self.tenant, name, wait)
        return None

    def charge(self, requests: int, tokens: int, now: float) -> None:
        """Negative ones are given back."""
        if self._requests is not None:
            self._requests.take(requests, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def budgets_left(self, now: float) -> BudgetsLeft:
        buckets = self._requests, self._tokens
        return BudgetsLeft(*(0.0 if bucket is None else bucket.level(now) for bucket in buckets))

    def has_room(self, answers: int, blocks: int, all_blocks: int) -> bool:
        """Whether one more may run. ``all_blocks``: of the decode workers. The only one always
        may: else it could never run."""
        limits = self.tenant.limits
        if not self.sequences:
            return True
        most, share = limits.concurrent_sequences, limits.cache_share
        if most is not None and self.sequences + answers > most * self._part:
            return False
        return share is None or self.blocks + blocks <= share * self._part * all_blocks

    def began(self, answers: int, blocks: int) -> None:
        self.sequences += answers
        self.blocks += blocks

    def ended(self, answers: int, blocks: int, generated: int) -> None:
        """One that had begun."""
        self.began(-answers, -blocks)
        if generated:
            self._expected = _FADING * self._expected + (1 - _FADING) * generated / answers


def over_limit(tenant: Tenant, name: str, wait_s: float) -> Overloaded:
    """``name``: of the limit."""
    limit = getattr(tenant.limits, name)
    return Overloaded(
        f"tenant {tenant.name} has used up its {name} of {limit:g}; try again in {wait_s:.1f} s",
        reason=name.upper(),
        metadata={"tenant": tenant.name, "limit": f"{limit:g}"},
        retry_after=wait_s,
    )
