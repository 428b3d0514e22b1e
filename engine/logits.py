"""What requests do to their rows of logits before tokens are chosen from them.

Order as in vLLM's sampler: banned ids, logit bias, repetition penalty (over prompt and answer),
frequency penalty, presence penalty (over the answer). A ban is -inf, which none of the later ones
changes. Formulas: repetition from Keskar et al., "CTRL" (2019), with negative logits multiplied
as everybody does since; frequency and presence from the OpenAI API reference.
All rows of a step are changed together, where they are, and only at the ids that are meant.
Does not cover: temperature and the filters that follow it (``kernels.sampling``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from core.step import SampleSpec
from kernels.sampling_arrays import on_device

# A row of ``logits`` and what a request says of it.
RowSpec = tuple[int, SampleSpec]
Places = tuple[torch.Tensor, torch.Tensor]

_LARGEST = float(np.finfo(np.float32).max)


def changes_logits(spec: SampleSpec) -> bool:
    return bool(spec.banned_token_ids or spec.params.logit_bias or spec.params.penalized)


@contextmanager
def adjusted_logits(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> Iterator[None]:
    """Inside, row i of float32 ``logits`` [R, vocab] has the bans, bias and penalties of specs[i].

    Afterwards it is again as it was. All ids in ``specs`` must be in the vocabulary. Finite logits
    stay below +inf; where NaN or +inf would be covered up, the row holds NaN. On a GPU this only
    enqueues work.
    """
    changed = [(row, spec) for row, spec in enumerate(specs) if changes_logits(spec)]
    if not changed:
        yield
        return
    places = _places([(row, _touched(spec)) for row, spec in changed], logits.device)
    before = logits[places]
    _ban(logits, changed)
    _add_bias(logits, changed)
    _penalize_repetition(logits, changed)
    _penalize_counts(logits, changed)
    logits[places] = torch.where(before < torch.inf, logits[places], torch.nan)
    try:
        yield
    finally:
        logits[places] = before


def _touched(spec: SampleSpec) -> npt.NDArray[np.int64]:
    biased = [token for token, _ in spec.params.logit_bias]
    seen = spec.tokens if spec.params.penalized else ()
    return np.concatenate([spec.banned_token_ids, biased, seen]).astype(np.int64)


def _places(ids: Sequence[tuple[int, npt.ArrayLike]], device: torch.device) -> Places:
    """Rows and ids, flat, of all pairs of a row and its ids."""
    arrays = [np.asarray(of_row, np.int64) for _, of_row in ids]
    rows = np.repeat([row for row, _ in ids], [len(array) for array in arrays])
    return on_device(rows, device), on_device(np.concatenate(arrays), device)


def _ban(logits: torch.Tensor, changed: Sequence[RowSpec]) -> None:
    banned = [(row, spec.banned_token_ids) for row, spec in changed if spec.banned_token_ids]
    if banned:
        logits[_places(banned, logits.device)] = -torch.inf


def _add_bias(logits: torch.Tensor, changed: Sequence[RowSpec]) -> None:
    biased = [(row, spec.params.logit_bias) for row, spec in changed if spec.params.logit_bias]
    if not biased:
        return
    places = _places([(row, [token for token, _ in bias]) for row, bias in biased], logits.device)
    values = np.array([value for _, bias in biased for _, value in bias], np.float32)
    logits[places] += on_device(values, logits.device)


def _penalize_repetition(logits: torch.Tensor, changed: Sequence[RowSpec]) -> None:
    repeated = [(row, spec) for row, spec in changed if spec.params.repetition_penalty != 1.0]
    if not repeated:
        return
    penalties = np.repeat(
        [spec.params.repetition_penalty for _, spec in repeated],
        [len(spec.tokens) for _, spec in repeated],
    )
    penalty = on_device(penalties, logits.device)
    # A token that occurs twice is written twice with the same value: no need to sort them out.
    places = _places([(row, spec.tokens) for row, spec in repeated], logits.device)
    seen = logits[places].double()
    penalized = torch.where(seen > 0, seen / penalty, seen * penalty)
    logits[places] = penalized.clamp(max=_LARGEST).float()


def _penalize_counts(logits: torch.Tensor, changed: Sequence[RowSpec]) -> None:
    counted = [
        (row, spec)
        for row, spec in changed
        if spec.params.frequency_penalty or spec.params.presence_penalty
    ]
    if not counted:
        return
    each = [np.unique(spec.tokens[spec.prompt_length :], return_counts=True) for _, spec in counted]
    penalties = [
        spec.params.frequency_penalty * counts + spec.params.presence_penalty
        for (_, spec), (_, counts) in zip(counted, each, strict=True)
    ]
    places = _places(
        [(row, ids) for (row, _), (ids, _) in zip(counted, each, strict=True)], logits.device
    )
    logits[places] -= on_device(np.concatenate(penalties).astype(np.float32), logits.device)
