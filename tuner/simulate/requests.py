"""The requests of a simulation as arrays: when they arrive, how long they are, what they share.

Pure. Does not cover: reading traces (``tuner.load.traces``), drawing synthetic ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.block_hash import TokenArray
from core.errors import InvalidField

Lengths = npt.NDArray[np.int32]

# First token id of the part of a prompt that no other request shares.
_PRIVATE = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class RequestTrace:
    """``arrivals_s``: float64 [n], rising, from 0; ``prompt_tokens``, ``output_tokens``: int32 [n],
    1 or more each.

    ``shared``: for each request the ids of the leading parts of its prompt, ``part_tokens`` tokens
    each; two prompts share as many leading tokens as they have equal ids in front. Empty: none
    shares anything.
    """

    name: str
    arrivals_s: npt.NDArray[np.float64]
    prompt_tokens: Lengths
    output_tokens: Lengths
    shared: Sequence[npt.NDArray[np.int32]] = ()
    part_tokens: int = 512

    def __post_init__(self) -> None:
        if not len(self):
            raise InvalidField("trace", self.name, "holds no request")
        if self.arrivals_s[0] < 0 or (np.diff(self.arrivals_s) < 0).any():
            raise InvalidField("trace", self.name, "arrivals must rise from 0")
        if self.prompt_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise InvalidField("trace", self.name, "prompts and answers have a token or more")

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival."""
        return float(self.arrivals_s[-1])

    def prompt(self, index: int) -> TokenArray:
        """Token ids, int32: numbers that are equal exactly where prompts are shared."""
        length = int(self.prompt_tokens[index])
        if not len(self.shared):
            return np.full(length, _PRIVATE + index, dtype=np.int32)
        tokens = np.repeat(self.shared[index], self.part_tokens)[:length]
        missing = length - len(tokens)
        if missing:
            tokens = np.concatenate([tokens, np.full(missing, _PRIVATE + index, dtype=np.int32)])
        return tokens.astype(np.int32, copy=False)

    def faster(self, factor: float) -> RequestTrace:
        """The same requests in 1 / ``factor`` of the time."""
        return RequestTrace(
            self.name,
            self.arrivals_s / factor,
            self.prompt_tokens,
            self.output_tokens,
            self.shared,
            self.part_tokens,
        )

    def first(self, count: int) -> RequestTrace:
        """The ``count`` that come first."""
        return RequestTrace(
            self.name,
            self.arrivals_s[:count],
            self.prompt_tokens[:count],
            self.output_tokens[:count],
            self.shared[:count],
            self.part_tokens,
        )
