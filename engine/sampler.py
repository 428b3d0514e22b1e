"""Chooses the next token from logits: greedy, or by one counter-based draw.

Order of the filters, as in vLLM: temperature, min_p, top_k, top_p. A draw is found in the
cumulated probabilities sorted by (-probability, token id), so that equal logits, seed, sequence
index and position give the same token on any worker.
Does not cover: penalties, logprobs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from core.random import uniform
from core.request import SamplingParams
from core.step import SampleSpec

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.intp]

# Sorting the likeliest tokens is nearly always enough; a whole vocabulary costs milliseconds.
_SORTED_FIRST = (1024, 8192)


def sample(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[int]:
    """One token id for each row of float32 ``logits`` [R, vocab], by the spec of that row."""
    if logits.device.type != "cpu" and all(_is_plain_greedy(spec) for spec in specs):
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    # numpy's argmax is 10 times quicker than torch's on CPU and gives the lowest id of equals.
    rows = logits.cpu().numpy()
    return [sample_row(row, spec) for row, spec in zip(rows, specs, strict=True)]


def sample_row(logits: Logits, spec: SampleSpec) -> int:
    """One token id from float32 [vocab]."""
    if spec.banned_token_ids:
        logits = logits.copy()
        logits[list(spec.banned_token_ids)] = -np.inf
    if spec.params.greedy:
        return int(logits.argmax())
    draw = uniform(spec.params.seed, spec.sequence_index, spec.position)
    return _draw_token(filtered_probabilities(logits, spec.params), spec.params.top_p, draw)


def filtered_probabilities(logits: Logits, params: SamplingParams) -> Probabilities:
    """Weights [vocab] after temperature, min_p and top_k; they need not sum to 1."""
    scaled = logits.astype(np.float64) / params.temperature
    weights: Probabilities = np.exp(scaled - scaled.max())
    if params.min_p > 0:
        weights[weights < params.min_p * weights.max()] = 0
    if 0 < params.top_k < np.count_nonzero(weights):
        kept = _likeliest(weights, params.top_k)[: params.top_k]
        only_kept = np.zeros_like(weights)
        only_kept[kept] = weights[kept]
        weights = only_kept
    return weights


def _is_plain_greedy(spec: SampleSpec) -> bool:
    return spec.params.greedy and not spec.banned_token_ids


def _draw_token(weights: Probabilities, top_p: float, draw: float) -> int:
    """Inverse CDF over the smallest set of likeliest tokens that holds ``top_p`` of the mass."""
    total = float(weights.sum())
    needed = total * (top_p if top_p < 1 else draw)
    ids, cumulated = _sorted_until(weights, needed)
    last = len(ids) - 1
    if top_p < 1:
        last = min(last, int(np.searchsorted(cumulated, needed, side="left")))
        total = float(cumulated[last])
    return int(ids[min(last, int(np.searchsorted(cumulated, draw * total, side="right")))])


def _sorted_until(weights: Probabilities, needed: float) -> tuple[TokenIds, Probabilities]:
    """Likeliest ids first, with cumulated weights, until these exceed ``needed`` (or all)."""
    for count in (*_SORTED_FIRST, len(weights)):
        ids = _likeliest(weights, count)
        cumulated = weights[ids].cumsum()
        if cumulated[-1] > needed:
            break
    return ids, cumulated


def _likeliest(weights: Probabilities, count: int) -> TokenIds:
    """At least ``count`` ids with weight (if there are as many), by (-weight, id)."""
    threshold = 0.0
    if count < len(weights):
        threshold = float(np.partition(weights, -count)[-count])
    ids = np.flatnonzero((weights >= threshold) & (weights > 0))
    return ids[np.argsort(-weights[ids], kind="stable")]
