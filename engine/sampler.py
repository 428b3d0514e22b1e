"""Chooses next tokens from logits: greedy, or by one counter-based draw each.

Order, as in vLLM: log-probabilities are those of the logits as the model gave them; then bans,
bias and penalties (``engine.logits``), temperature, min_p, top_k, top_p. A draw is found in the
cumulated probabilities sorted by (-probability, token id), so that equal logits, seed, sequence
index and position give the same token on any worker and in any company.
Does not cover: how a failed sequence is reported (the workers' schedulers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from core.random import uniform
from core.request import SamplingParams
from core.step import SampledToken, SampleSpec, Slice, StepResult
from engine.logits import Logits, adjusted_logits, changes_logits
from engine.logprobs import token_logprobs

Probabilities = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.intp]

NOT_FINITE = "the model's logits hold NaN or infinity, or leave no token to choose"

# Nearly always the tokens above a small share of the likeliest one's probability are enough, else
# some thousand likeliest ones; sorting a whole vocabulary costs milliseconds.
_UNLIKELY = 1e-4
_SORTED_FIRST = (1024, 8192)


def sample(logits: torch.Tensor, slices: Sequence[Slice]) -> StepResult:
    """Draws all samples of each slice from its row of float32 ``logits`` [R, vocab].

    A row that holds NaN or +inf, or nothing above -inf, fails its own sequence only.
    """
    rows = _sample_rows(logits, [part.samples for part in slices])
    ids = [part.sequence_id for part in slices]
    sampled = {i: row for i, row in zip(ids, rows, strict=True) if row}
    return StepResult(sampled, {i: NOT_FINITE for i in ids if i not in sampled})


def _sample_rows(
    logits: torch.Tensor, samples: Sequence[tuple[SampleSpec, ...]]
) -> list[tuple[SampledToken, ...]]:
    if logits.device.type != "cpu" and all(_is_plain_greedy(specs[0]) for specs in samples):
        return greedy_on_device(logits, [len(specs) for specs in samples])
    # numpy's argmax is 10 times quicker than torch's on CPU and gives the lowest id of equals.
    rows = logits.cpu().numpy()
    return [sample_row(row, specs) for row, specs in zip(rows, samples, strict=True)]


def greedy_on_device(logits: torch.Tensor, counts: Sequence[int]) -> list[tuple[SampledToken, ...]]:
    """The likeliest token of each row, ``counts[i]`` times; none where that is not finite.

    Only the token ids leave the device.
    """
    best = logits.argmax(dim=-1)
    finite = logits.gather(1, best.unsqueeze(1)).squeeze(1).isfinite()
    tokens = torch.where(finite, best, -1).tolist()
    return [
        (SampledToken(int(token)),) * count if token >= 0 else ()
        for token, count in zip(tokens, counts, strict=True)
    ]


def sample_row(logits: Logits, specs: Sequence[SampleSpec]) -> tuple[SampledToken, ...]:
    """One token for each of ``specs`` from float32 [vocab]; none if no token can be chosen.

    ``specs`` may differ in their sequence index only.
    """
    spec = specs[0]
    # A ban could hide NaN or +inf; the maximum doesn't: it is NaN where any is.
    if changes_logits(spec) and not math.isfinite(logits.max()):
        return ()
    tokens = _choose(adjusted_logits(logits, spec), specs)
    if not tokens or spec.params.logprobs is None:
        return tuple(SampledToken(token) for token in tokens)
    logprobs = token_logprobs(logits, tokens, spec.params.logprobs)
    return tuple(SampledToken(*pair) for pair in zip(tokens, logprobs, strict=True))


def _is_plain_greedy(spec: SampleSpec) -> bool:
    return spec.params.greedy and spec.params.logprobs is None and not changes_logits(spec)


def _choose(logits: Logits, specs: Sequence[SampleSpec]) -> list[int]:
    """From adjusted logits; nothing if these hold NaN or +inf, or all tokens are banned."""
    # argmax is the first NaN where there is one.
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        return []
    params = specs[0].params
    if params.greedy:
        return [best] * len(specs)
    draws = [uniform(spec.params.seed, spec.sequence_index, spec.position) for spec in specs]
    return _draw_tokens(_weights(logits, float(logits[best]), params), params, draws)


def _weights(logits: Logits, largest: float, params: SamplingParams) -> Probabilities:
    """Probabilities after temperature and min_p [vocab], up to a factor: the largest is 1."""
    weights: Probabilities = np.subtract(logits, largest, dtype=np.float64)
    # Divided after the subtraction: the smallest temperatures would overflow otherwise.
    with np.errstate(over="ignore"):
        weights /= params.temperature
    np.exp(weights, out=weights)
    if params.min_p > 0:
        weights[weights < params.min_p] = 0
    return weights


def _draw_tokens(
    weights: Probabilities, params: SamplingParams, draws: Sequence[float]
) -> list[int]:
    """Inverse CDF over the smallest set of likeliest tokens that holds ``top_p`` of the mass."""
    if params.top_k:
        ids = _sorted_top_k(weights, params.top_k)
        cumulated = weights[ids].cumsum()
        total = float(cumulated[-1])
    else:
        total = float(weights.sum())
        share = params.top_p if params.top_p < 1 else max(draws)
        ids, cumulated = _sorted_until(weights, share * total)
    last = len(ids) - 1
    if params.top_p < 1:
        last = min(last, int(np.searchsorted(cumulated, params.top_p * total, side="left")))
        total = float(cumulated[last])
    found = np.searchsorted(cumulated, np.array(draws) * total, side="right")
    return [int(i) for i in ids[np.minimum(found, last)]]


def _sorted_top_k(weights: Probabilities, k: int) -> TokenIds:
    for ids in _sorted_prefixes(weights):
        if len(ids) >= k:
            break
    return ids[:k]


def _sorted_until(weights: Probabilities, needed: float) -> tuple[TokenIds, Probabilities]:
    """Likeliest ids first, with cumulated weights, until these exceed ``needed`` (or all)."""
    for ids in _sorted_prefixes(weights):
        cumulated = weights[ids].cumsum()
        if cumulated[-1] > needed:
            break
    return ids, cumulated


def _sorted_prefixes(weights: Probabilities) -> Iterator[TokenIds]:
    """Longer and longer beginnings of all ids with weight by (-weight, id); the last has all."""
    likely = np.flatnonzero(weights > _UNLIKELY)
    if len(likely) <= _SORTED_FIRST[0]:
        yield _sorted(weights, likely)
    possible = np.flatnonzero(weights)
    values = weights[possible]
    for count in _SORTED_FIRST:
        if count < len(possible):
            threshold = np.partition(values, -count)[-count]
            yield _sorted(weights, possible[values >= threshold])
    yield _sorted(weights, possible)


def _sorted(weights: Probabilities, ids: TokenIds) -> TokenIds:
    return ids[np.argsort(-weights[ids], kind="stable")]
