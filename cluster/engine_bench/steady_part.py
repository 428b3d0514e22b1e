"""The steady part of several streams that decode together, as seen at the client. Pure.

It begins when the last stream has its first token and ends when the first one ends: in between
every step of the server computes one token of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cluster.engine_bench.timing import Timing

# With fewer tokens of a stream in the steady part its pace is noise.
LEAST_TOKENS = 4


@dataclass(slots=True)
class Stream:
    """When the pieces of an answer came (seconds) and how many tokens each held."""

    times: list[float]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class SteadyPart:
    """``step``: its median is that over streams of their mean time per token, which is blind to
    how tokens are bunched on their way; p10 and p90 are of single times between tokens.

    ``mean_generated``: tokens that a stream's answer has at the middle of it.
    """

    step: Timing
    mean_generated: float


def find_steady_part(streams: Sequence[Stream]) -> SteadyPart | None:
    """None if some stream has fewer than ``LEAST_TOKENS`` tokens after the first in that time.

    ``streams``: each with at least one piece.
    """
    start = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    means, gaps, generated = [], [], []
    for stream in streams:
        times, tokens = np.array(stream.times), np.array(stream.tokens)
        inside = np.flatnonzero((times >= start) & (times <= end))
        if len(inside) < 2 or tokens[inside[1:]].sum() < LEAST_TOKENS:
            return None
        counted = tokens[inside[1:]]
        means.append((times[inside[-1]] - times[inside[0]]) / counted.sum())
        gaps.append(np.repeat(np.diff(times[inside]) / counted, counted))
        generated.append(tokens[: inside[0] + 1].sum() + counted.sum() / 2)
    p10, p90 = np.percentile(np.concatenate(gaps), (10, 90))
    count = sum(len(one) for one in gaps)
    timing = Timing(float(np.median(means)), float(p10), float(p90), count)
    return SteadyPart(timing, float(np.mean(generated)))


class SteadyWatch:
    """Says while pieces come when the steady part has ``steps`` tokens of each of ``count``
    streams."""

    def __init__(self, count: int, steps: int) -> None:
        self._steps = steps
        self._before = [0] * count
        self._inside = [0] * count
        self._waiting = count

    def piece(self, stream: int, tokens: int) -> bool:
        """Another piece of a stream; true when all have enough."""
        if self._waiting:
            self._waiting -= self._before[stream] == 0
            self._before[stream] += tokens
        else:
            self._inside[stream] += tokens
        return min(self._inside) >= self._steps
