"""What requests do to their rows of logits before tokens are chosen from them.

Order as in vLLM's sampler: banned ids, logit bias, repetition penalty (over prompt and answer),
frequency penalty, presence penalty (over the answer). A ban is a bias of -inf, which none of the
later ones changes. Formulas: repetition from Keskar et al., "CTRL" (2019), with negative logits
multiplied as everybody does since; frequency and presence from the OpenAI API reference.
All rows of a step are changed together, where they are, and only at the ids that are meant. What is
known of a sequence's ids is kept from step to step: a step adds the token that was drawn.
Does not cover: temperature and the filters that follow it (``kernels.sampling``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.step import SampleSpec, Slice
from kernels.sampling_arrays import on_device

# An id of the vocabulary and what becomes of its logit x, with c = x + bias:
# (c / divisor if c > 0 else c * divisor) - penalty. ``count``: how often the answer has it.
_ENTRY = np.dtype(
    [
        ("id", np.int64),
        ("bias", np.float32),
        ("divisor", np.float64),
        ("penalty", np.float32),
        ("count", np.int64),
    ]
)
Entries = npt.NDArray[Any]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Adjustments:
    """``entries`` [N] of rows ``rows`` (int64 [N]); no id twice in one row."""

    rows: npt.NDArray[np.int64]
    entries: Entries

    @contextmanager
    def applied(self, logits: torch.Tensor) -> Iterator[None]:
        """Inside, float32 ``logits`` [R, vocab] have the bans, bias and penalties.

        Afterwards they are again as they were. All ids must be in the vocabulary. Finite logits
        stay below +inf; where NaN or +inf would be covered up, the row holds NaN. On a GPU this
        only enqueues work.
        """
        places = on_device(self.rows, logits.device), self._field("id", logits.device)
        before = logits[places]
        logits[places] = torch.where(before < torch.inf, self._changed(before), torch.nan)
        try:
            yield
        finally:
            logits[places] = before

    def _changed(self, before: torch.Tensor) -> torch.Tensor:
        biased = (before + self._field("bias", before.device)).double()
        divisor = self._field("divisor", before.device)
        repeated = torch.where(biased > 0, biased / divisor, biased * divisor)
        return repeated.clamp(max=_LARGEST).float() - self._field("penalty", before.device)

    def _field(self, name: str, device: torch.device) -> torch.Tensor:
        return on_device(np.ascontiguousarray(self.entries[name]), device)


class LogitAdjuster:
    """Keeps what is known of the sequences of the step before. For one thread at a time."""

    def __init__(self) -> None:
        self._kept: dict[int, _SequenceEntries] = {}

    def prepare(self, slices: Sequence[Slice]) -> Adjustments | None:
        """For logits of which row i belongs to ``slices[i]``, whose samples all want the same; None
        if they are to stay as they are."""
        specs = [part.samples[0] for part in slices]
        changed = [row for row, spec in enumerate(specs) if _changes_logits(spec)]
        if not changed:
            self._kept.clear()
            return None
        kept = {}
        for row in changed:
            sequence_id = slices[row].sequence_id
            kept[sequence_id] = self._entries_of(sequence_id, specs[row])
        self._kept = kept
        each = [of_sequence.entries for of_sequence in kept.values()]
        return Adjustments(np.repeat(changed, [len(e) for e in each]), np.concatenate(each))

    def _entries_of(self, sequence_id: int, spec: SampleSpec) -> _SequenceEntries:
        found = self._kept.get(sequence_id)
        if found is None or not found.goes_on_as(spec):
            return _SequenceEntries(spec)
        found.follow(spec)
        return found


def _changes_logits(spec: SampleSpec) -> bool:
    return bool(spec.banned_token_ids or spec.params.logit_bias or spec.params.penalized)


class _SequenceEntries:
    """One sequence's entries, in an array that grows in place."""

    def __init__(self, spec: SampleSpec) -> None:
        params = spec.params
        self._spec = spec
        seen = spec.tokens if params.penalized else spec.tokens[:0]
        biased = [token for token, _ in params.logit_bias]
        ids = np.unique(np.concatenate([seen, biased, spec.banned_token_ids]).astype(np.int64))
        self._count = len(ids)
        self._entries = np.zeros(len(ids), _ENTRY)
        self._entries["id"] = ids
        self._entries["divisor"] = 1
        self._entries["divisor"][np.searchsorted(ids, seen)] = params.repetition_penalty
        self._entries["bias"][np.searchsorted(ids, biased)] = [
            bias for _, bias in params.logit_bias
        ]
        self._entries["bias"][np.searchsorted(ids, list(spec.banned_token_ids))] = -np.inf
        answer = np.searchsorted(ids, seen[spec.prompt_length :])
        np.add.at(self._entries["count"], answer, 1)
        self._penalize(answer)
        self._places: dict[int, int] = dict(zip(ids.tolist(), range(len(ids)), strict=True))

    @property
    def entries(self) -> Entries:
        return self._entries[: self._count]

    def goes_on_as(self, spec: SampleSpec) -> bool:
        """Whether ``spec`` is of the same request, and of the same answer as far as that counts."""
        before = self._spec
        if spec.params is not before.params or spec.banned_token_ids != before.banned_token_ids:
            return False
        if not spec.params.penalized:
            return True
        same = spec.token_buffer is before.token_buffer
        return same and before.prompt_length <= before.position <= spec.position

    def follow(self, spec: SampleSpec) -> None:
        """Counts the tokens of the answer that came since."""
        if spec.params.penalized:
            new = spec.tokens[self._spec.position :].tolist()
            places = [self._place_of(token) for token in new]
            for place in places:
                self._entries["count"][place] += 1
            self._entries["divisor"][places] = spec.params.repetition_penalty
            self._penalize(places)
        self._spec = spec

    def _place_of(self, token: int) -> int:
        place: int = self._places.setdefault(token, self._count)
        if place == self._count:
            if place == len(self._entries):
                self._entries = np.concatenate([self._entries, np.zeros(place + 16, _ENTRY)])
            self._entries["id"][place] = token
            self._count += 1
        return place

    def _penalize(self, places: list[int] | npt.NDArray[np.intp]) -> None:
        params, counts = self._spec.params, self._entries["count"][places]
        penalties = params.frequency_penalty * counts + params.presence_penalty
        self._entries["penalty"][places] = penalties
