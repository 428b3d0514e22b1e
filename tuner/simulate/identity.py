"""What workers and router know a simulated request by, and what it draws.

A request draws the same token again and again, one that no prompt and no other answer holds: so
nobody finds a block of an answer in a cache, as prompts of a trace know nothing of answers.
"""

from __future__ import annotations

from core.request import AttemptKey, RequestKey, SamplingParams
from core.tenants import DEFAULT_TENANT

# Ids of shared parts of prompts are below, those of private parts are from 1 << 30 on.
_FIRST_DRAWN = 1 << 29


def request_key(index: int, tenant: str = DEFAULT_TENANT) -> RequestKey:
    return RequestKey(tenant, str(index))


def request_index(key: AttemptKey) -> int:
    return int(key.request.request_id)


def index_of(key: RequestKey) -> int:
    return int(key.request_id)


def sampling_of(index: int, output_tokens: int) -> SamplingParams:
    """Nothing but the length ends the answer. The seed says whose it is."""
    return SamplingParams(output_tokens, ignore_eos=True, seed=index)


def drawn_token(params: SamplingParams) -> int:
    return _FIRST_DRAWN + params.seed
