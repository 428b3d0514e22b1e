"""Log-probabilities of chosen tokens and of the likeliest ones, from the model's own logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.step import TokenLogprobs

Row = npt.NDArray[np.float32]

# Logits this near to the largest nearly always include the wanted ones, and are few.
_NEAR = 8.0
_FEW = 1024


def token_logprobs(logits: Row, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """One for each of ``tokens``, with the ``count`` likeliest of float32 ``logits`` [vocab].

    The log-softmax is computed in float64. Of equally likely tokens the lower id comes first.
    The largest logit must be finite.
    """
    exact = logits.astype(np.float64)
    exact -= exact.max()
    normalizer = np.log(np.exp(exact).sum())
    top_ids = _likeliest(logits, count)
    top = tuple(int(i) for i in top_ids)
    top_logprobs = tuple(float(x) for x in exact[top_ids] - normalizer)
    return [TokenLogprobs(float(exact[token] - normalizer), top, top_logprobs) for token in tokens]


def _likeliest(logits: Row, count: int) -> npt.NDArray[np.intp]:
    """``count`` ids (or all there are) by (-logit, id)."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    ids = np.flatnonzero(logits >= logits.max() - _NEAR)
    if not count <= len(ids) <= _FEW:
        count = min(count, len(logits))
        ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return ids[np.argsort(-logits[ids], kind="stable")][:count]
