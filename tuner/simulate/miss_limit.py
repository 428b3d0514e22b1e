"""When so many requests have missed their latency limits that the rest can't change the verdict.

Pure. Does not cover: what a miss is once a simulation has ended (``tuner.simulate.summary.met``,
which says the same of the same requests).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import InvalidField

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MissLimit:
    """A simulation ends once more than ``most_missed`` requests have certainly missed ``ttft_s``
    or ``tpot_s`` (seconds). The first ``skipped`` requests are not counted."""

    ttft_s: float
    tpot_s: float
    skipped: int
    most_missed: int

    def __post_init__(self) -> None:
        for field in ("skipped", "most_missed"):
            if getattr(self, field) < 0:
                raise InvalidField(field, getattr(self, field), "must be 0 or more")

    def is_passed(
        self,
        now_s: float,
        arrivals_s: Seconds,
        output_tokens: npt.NDArray[np.int32],
        first_token_s: Seconds,
        last_token_s: Seconds,
    ) -> bool:
        """All arrays [n], by request. NaN for tokens that have not come by ``now_s``, or never do:
        whoever waits for one has waited until now, so a limit that is passed stays passed."""
        counted = slice(self.skipped, None)
        arrived, first, last = arrivals_s[counted], first_token_s[counted], last_token_s[counted]
        no_first, no_last = np.isnan(first), np.isnan(last)
        first = np.where(no_first, np.maximum(now_s, arrived), first)
        last = np.where(no_last, np.maximum(now_s, first), last)
        further = np.maximum(output_tokens[counted] - 1, 1)
        missed = (first - arrived > self.ttft_s) | ((last - first) / further > self.tpot_s)
        return int(missed.sum()) > self.most_missed
