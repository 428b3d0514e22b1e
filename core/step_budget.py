"""How many tokens one engine step takes at most, if the config does not say. Pure."""

from __future__ import annotations

from core.config import ClusterSpec
from core.errors import InvalidField

# A CPU core computes chunks of 128 to 1,024 tokens at the same rate (docs/PERFORMANCE.md), and
# with smaller ones less is left to ship after the last. A GPU needs more rows to be busy.
STEP_TOKENS = {"cpu": 256, "cuda": 2048}


def step_budget(spec: ClusterSpec, pool: str) -> int:
    """Tokens of one step of a worker in ``pool``. A step of decoding takes one of every sequence.

    Raises ``InvalidField`` if the config leaves less room than that.
    """
    chosen = spec.pools.of(pool)
    budget = chosen.max_num_batched_tokens
    if budget is None:
        return max(STEP_TOKENS[spec.engine.device], chosen.max_num_seqs)
    if pool == "decode" and budget < chosen.max_num_seqs:
        fix = f"must be at least max_num_seqs ({chosen.max_num_seqs}): one token for each sequence"
        raise InvalidField(f"pools.{pool}.max_num_batched_tokens", budget, fix)
    return budget
