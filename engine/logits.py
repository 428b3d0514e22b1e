"""What a request does to a row of logits before a token is chosen from it.

Order as in vLLM's sampler: banned ids, logit bias, repetition penalty (over prompt and answer),
frequency penalty, presence penalty (over the answer). A ban is -inf, which none of the later ones
changes. Formulas: repetition from Keskar et al., "CTRL" (2019), with negative logits multiplied
as everybody does since; frequency and presence from the OpenAI API reference.
Does not cover: temperature and the filters that follow it (``engine.sampler``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.request import SamplingParams
from core.step import SampleSpec

Logits = npt.NDArray[np.float32]

_LARGEST = float(np.finfo(np.float32).max)


def changes_logits(spec: SampleSpec) -> bool:
    return bool(spec.banned_token_ids or spec.params.logit_bias or spec.params.penalized)


def adjusted_logits(logits: Logits, spec: SampleSpec) -> Logits:
    """float32 [vocab] with bans, bias and penalties; ``logits`` itself if there are none.

    All ids in ``spec`` must be in the vocabulary. Finite logits stay below +inf.
    """
    if not changes_logits(spec):
        return logits
    logits = logits.copy()
    params = spec.params
    if spec.banned_token_ids:
        logits[list(spec.banned_token_ids)] = -np.inf
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        logits[list(ids)] += np.array(biases, np.float32)
    if params.repetition_penalty != 1.0:
        _penalize_repetition(logits, spec.tokens, params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        _penalize_counts(logits, spec.tokens[spec.prompt_length :], params)
    return logits


def _penalize_repetition(logits: Logits, tokens: npt.NDArray[np.int32], penalty: float) -> None:
    # A token that occurs twice is written twice with the same value: no need to sort them out.
    seen = logits[tokens].astype(np.float64)
    with np.errstate(over="ignore"):
        penalized = np.where(seen > 0, seen / penalty, seen * penalty)
    logits[tokens] = np.minimum(penalized, _LARGEST)


def _penalize_counts(logits: Logits, answer: npt.NDArray[np.int32], params: SamplingParams) -> None:
    ids, counts = np.unique(answer, return_counts=True)
    logits[ids] -= (params.frequency_penalty * counts + params.presence_penalty).astype(np.float32)
