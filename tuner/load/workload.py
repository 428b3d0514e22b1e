"""How long prompts and answers are: ranges, mixtures of them, and the presets of `bench`.

Pure. Does not cover when requests arrive (``arrivals``) or what prompts say (``prompts``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRange:
    """From ``low`` to ``high`` tokens, both included, each number as likely as any other."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}" if self.low < self.high else str(self.low)


@dataclass(frozen=True, slots=True)
class PromptPart:
    """The ``share`` (0 to 1) of prompts that have a length in ``tokens``."""

    share: float
    tokens: TokenRange


@dataclass(frozen=True, slots=True)
class Workload:
    """A mixture of prompts, and the range of answers. The shares add up to 1."""

    prompts: tuple[PromptPart, ...]
    outputs: TokenRange

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Lengths, Lengths]:
        """Tokens of ``count`` prompts and of their answers, int64 [count] each.

        Every request takes the same number of draws, so the first ones of a longer run are those
        of a shorter one with the same seed.
        """
        draws = generator.random((count, 3))
        parts = np.searchsorted(np.cumsum([part.share for part in self.prompts])[:-1], draws[:, 0])
        low = np.array([part.tokens.low for part in self.prompts])[parts]
        high = np.array([part.tokens.high for part in self.prompts])[parts]
        outputs = self.outputs
        return _pick(low, high, draws[:, 1]), _pick(outputs.low, outputs.high, draws[:, 2])

    def __str__(self) -> str:
        parts = (f"{part.share:.0%} {part.tokens}" for part in self.prompts)
        return f"prompts {', '.join(parts)} tokens; answers {self.outputs} tokens"


@dataclass(frozen=True, slots=True)
class Preset:
    """A workload, and how long and with which seeds it is run when the user does not say."""

    workload: Workload
    duration_s: float
    seeds: tuple[int, ...]


SHORT = TokenRange(150, 250)
LONG = TokenRange(1_300, 1_700)
ANSWER = TokenRange(80, 120)

PRESETS = {
    "mixed": Preset(
        Workload((PromptPart(0.8, SHORT), PromptPart(0.2, LONG)), ANSWER), 180.0, (0, 1, 2)
    ),
    "short": Preset(Workload((PromptPart(1.0, SHORT),), ANSWER), 60.0, (0,)),
    "long": Preset(Workload((PromptPart(1.0, LONG),), ANSWER), 60.0, (0,)),
}


def _pick(low: Lengths | int, high: Lengths | int, draws: npt.NDArray[np.float64]) -> Lengths:
    lengths: Lengths = (low + np.floor(draws * (high - low + 1))).astype(np.int64)
    return lengths
