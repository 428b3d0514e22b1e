"""Draws tokens from rows of logits: greedy, or temperature, min_p, top_k, top_p and one draw each.

For a row x with largest logit m, in float64:
1. Token i weighs wᵢ = exp((xᵢ - m) / temperature); those with xᵢ - m < temperature · ln(min_p)
   drop out, and those below 2⁻⁷² of the likeliest, which no draw could tell from nothing.
2. The order is (-xᵢ, i). ``top_k`` keeps the first so many; ``top_p`` the shortest beginning of
   these that holds that share of their mass.
3. With the draw u of ``kernels.philox`` the token is the first at which the cumulated mass exceeds
   u times the mass of what is left.
Every path (Triton, C++, numpy) follows this definition. Their sums differ by about 1e-13, so they
could only differ in a token when u or top_p falls that near to an edge of the cumulated mass.
Does not cover: penalties, bans and log-probabilities (``engine``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from kernels.dispatch import implementation
from kernels.philox import uniforms
from kernels.sampling_arrays import CUTOFF, ROW, TEMPERATURE, TOP_K, TOP_P, DrawSpec, SamplingArrays
from native.library import library

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int64]

NO_TOKEN = -1

# Nearly always the tokens above a small share of the likeliest one's weight are enough, else some
# thousand likeliest ones; sorting a whole vocabulary costs milliseconds.
_UNLIKELY = 1e-4
_SORTED_FIRST = (1024, 8192)


def sample_tokens(
    logits: torch.Tensor, arrays: SamplingArrays, maxima: torch.Tensor | None = None
) -> torch.Tensor:
    """int64 [D] on the device of float32 ``logits`` [R, vocab]: one token for each draw.

    ``maxima``: of the logits' stripes, as `kernels.linear.Linear.with_maxima` gives them, of these
    very logits; most logits then need not be read.
    -1 where the row holds NaN or +inf, or nothing above -inf. On a GPU it only enqueues work.
    Raises ValueError for logits of another type or layout, and rows that there are not.
    """
    _check(logits, arrays)
    chosen = implementation(logits)
    if chosen == "triton":
        return _sample_with_triton(logits, arrays)
    if chosen == "native":
        return _sample_natively(logits, arrays, maxima)
    return torch.from_numpy(sample_with_numpy(logits.cpu().numpy(), arrays)).to(logits.device)


def _check(logits: torch.Tensor, arrays: SamplingArrays) -> None:
    if logits.dtype is not torch.float32 or logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(f"logits must be float32 [R, vocab] with dense rows, not {logits.dtype}")
    if arrays.num_rows > logits.shape[0]:
        raise ValueError(
            f"draws from rows {arrays.rows.tolist()}, of which there are {len(logits)}"
        )


def _sample_with_triton(logits: torch.Tensor, arrays: SamplingArrays) -> torch.Tensor:
    # Here, so that a machine without a GPU never loads Triton.
    from kernels.sampling_triton import launch_sampling

    return launch_sampling(logits, arrays.on(logits.device))


def _sample_natively(
    logits: torch.Tensor, arrays: SamplingArrays, maxima: torch.Tensor | None
) -> torch.Tensor:
    count = len(arrays)
    tokens = torch.empty(count, dtype=torch.int64)
    library().crossdock_sample(
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[1],
        None if maxima is None else maxima.data_ptr(),
        torch.from_numpy(arrays.values).data_ptr(),
        count,
        tokens.data_ptr(),
    )
    return tokens


def sample_with_numpy(logits: Logits, arrays: SamplingArrays) -> TokenIds:
    """The path without a compiler: prepares a row once for all draws that share its settings."""
    tokens = np.full(len(arrays), NO_TOKEN, np.int64)
    draws = uniforms(arrays.seeds, arrays.sequence_indices, arrays.positions)
    for group in _groups(arrays):
        row, first = logits[arrays.rows[group.start]], group.start
        best = int(row.argmax())  # the first NaN where there is one, else the lowest id of equals
        if not np.isfinite(row[best]):
            continue
        if arrays.temperatures[first] == 0:
            tokens[group] = best
        else:
            tokens[group] = _draw_tokens(row, best, arrays, first, draws[group])
    return tokens


def _groups(arrays: SamplingArrays) -> Iterator[slice]:
    """Runs of draws that share row, top_k and the float settings."""
    shared = arrays.values[[ROW, TOP_K, TEMPERATURE, TOP_P, CUTOFF]]
    changes = np.flatnonzero((shared[:, 1:] != shared[:, :-1]).any(axis=0)) + 1
    edges = [0, *changes.tolist(), len(arrays)]
    return (slice(a, b) for a, b in pairwise(edges) if b > a)


def _draw_tokens(
    row: Logits, best: int, arrays: SamplingArrays, first: int, draws: Weights
) -> TokenIds:
    weights = np.subtract(row, row[best], dtype=np.float64)
    dropped = weights < arrays.cutoffs[first]
    # Divided after the subtraction: the smallest temperatures would overflow otherwise.
    with np.errstate(over="ignore"):
        weights /= arrays.temperatures[first]
    np.exp(weights, out=weights)
    weights[dropped] = 0
    return _find_tokens(row, weights, int(arrays.top_ks[first]), arrays.top_ps[first], draws)


def _find_tokens(
    row: Logits, weights: Weights, top_k: int, top_p: float, draws: Weights
) -> TokenIds:
    """Inverse CDF over the shortest beginning of the order that holds ``top_p`` of the mass."""
    if top_k:
        ids = _first_of_order(row, weights, top_k)
        cumulated = weights[ids].cumsum()
        total = float(cumulated[-1])
    else:
        total = float(weights.sum())
        share = top_p if top_p < 1 else float(draws.max())
        ids, cumulated = _beginning(row, weights, share * total)
    last = len(ids) - 1
    if top_p < 1:
        last = min(last, int(np.searchsorted(cumulated, top_p * total, side="left")))
        total = float(cumulated[last])
    found = np.searchsorted(cumulated, draws * total, side="right")
    return ids[np.minimum(found, last)]


def _first_of_order(row: Logits, weights: Weights, k: int) -> TokenIds:
    for ids in _beginnings(row, weights):
        if len(ids) >= k:
            break
    return ids[:k]


def _beginning(row: Logits, weights: Weights, needed: float) -> tuple[TokenIds, Weights]:
    """First ids of the order, with cumulated weights, until these exceed ``needed`` (or all)."""
    for ids in _beginnings(row, weights):
        cumulated = weights[ids].cumsum()
        if cumulated[-1] > needed:
            break
    return ids, cumulated


def _beginnings(row: Logits, weights: Weights) -> Iterator[TokenIds]:
    """Longer and longer beginnings of the order of all ids with weight; the last has all."""
    likely = np.flatnonzero(weights > _UNLIKELY)
    if len(likely) <= _SORTED_FIRST[0]:
        yield _ordered(row, likely)
    possible = np.flatnonzero(weights)
    values = row[possible]
    for count in _SORTED_FIRST:
        if count < len(possible):
            threshold = np.partition(values, -count)[-count]
            yield _ordered(row, possible[values >= threshold])
    yield _ordered(row, possible)


def _ordered(row: Logits, ids: TokenIds) -> TokenIds:
    return ids[np.argsort(-row[ids], kind="stable")]


def sample_reference(logits: Logits, draws: Sequence[DrawSpec]) -> TokenIds:
    """The definition, one draw after the other, sorting everything and cutting off nothing that is
    merely unlikely. It shares no settled number with the other paths."""
    keys = np.array([(d.seed, d.sequence_index, d.position) for d in draws], np.int64)
    drawn = uniforms(*keys.reshape(-1, 3).T)
    pairs = zip(draws, drawn.tolist(), strict=True)
    return np.array([_reference(logits[draw.row], draw, at) for draw, at in pairs])


def _reference(row: Logits, draw: DrawSpec, drawn: float) -> int:
    if np.isnan(row).any() or not np.isfinite(row.max()):
        return NO_TOKEN
    if draw.temperature == 0:
        return int(row.argmax())
    below = row.astype(np.float64) - row.max()
    order = np.lexsort((np.arange(len(row)), -row))
    if draw.min_p:
        order = order[below[order] >= draw.temperature * math.log(draw.min_p)]
    order = order[: draw.top_k or None]
    with np.errstate(over="ignore"):
        cumulated = np.exp(below[order] / draw.temperature).cumsum()
    nucleus = int(np.argmax(cumulated >= min(draw.top_p, 1.0) * cumulated[-1]))
    return int(order[np.argmax(cumulated > drawn * cumulated[nucleus])])
