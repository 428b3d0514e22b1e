"""The least that a cluster has to compute, read, keep and send for a share of a trace's requests.

A goal lets some requests miss their limits, and workers that are late answer the costliest last: so
of each kind of work only the cheapest requests are counted that make up the share. Prompts begin
with what an endless cache, common to all workers, would hold: no cluster has more. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from tuner.simulate.requests import RequestTrace

Amounts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LeastWork:
    """For each request that is offered, on average.

    ``requests``: the share that is to be served. ``new_tokens`` of prompts that no cache holds and
    their (query, key) ``pairs``. ``transfers`` to decode workers and the tokens ``sent`` in them:
    answers of one token need none. ``steps``: tokens after an answer's first one; ``context``: what
    all of these attend to; ``kept``: those tokens of it that no other request brought along.
    ``context_to_meet``: the mean context of that request up to which, by context, the share goes; 0
    if that has an answer of one token.
    """

    requests: float
    new_tokens: float
    pairs: float
    transfers: float
    sent: float
    steps: float
    context: float
    kept: float
    context_to_meet: float

    @classmethod
    def of(cls, trace: RequestTrace, share: float) -> LeastWork:
        """``share``: above 0 and at most 1."""
        prompts = trace.prompt_tokens.astype(np.float64)
        known = known_tokens(trace)
        new = prompts - known
        # A single token is computed as one of a decoding sequence is.
        pairs = np.where(new > 1, (prompts * (prompts + 1) - known * (known + 1)) / 2, 0.0)
        steps = trace.output_tokens.astype(np.float64) - 1
        answered = steps * (steps + 1) / 2
        context = prompts * steps + answered
        of_one = context / np.maximum(1.0, steps)
        needed = ceil(share * len(trace) - 1e-9)

        def least(amounts: Amounts) -> float:
            return float(np.sort(amounts)[:needed].sum()) / len(trace)

        return cls(
            requests=needed / len(trace),
            new_tokens=least(new),
            pairs=least(pairs),
            transfers=least((steps > 0).astype(np.float64)),
            sent=least(np.where(steps > 0, new, 0.0)),
            steps=least(steps),
            context=least(context),
            kept=least(new * steps + answered),
            context_to_meet=float(np.sort(of_one)[needed - 1]),
        )


def known_tokens(trace: RequestTrace) -> Amounts:
    """Of each prompt, as many as were the beginning of an earlier one; the last token is always
    computed. A part that was seen was seen after the same parts: ids of parts are those of chains.
    """
    known = np.zeros(len(trace))
    seen: set[int] = set()
    for index, ids in enumerate(trace.shared):
        parts = ids.tolist()
        count = next((i for i, part in enumerate(parts) if part not in seen), len(parts))
        seen.update(parts)
        known[index] = min(count * trace.part_tokens, int(trace.prompt_tokens[index]) - 1)
    return known
