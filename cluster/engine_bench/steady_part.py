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
    start, end = _borders(streams)
    means, gaps, generated = [], [], []
    for stream in streams:
        times, tokens = np.array(stream.times), np.array(stream.tokens)
        inside = np.flatnonzero((times >= start) & (times <= end))
        counted = tokens[inside[1:]]
        if counted.sum() < LEAST_TOKENS:
            return None
        means.append((times[inside[-1]] - times[inside[0]]) / counted.sum())
        gaps.append(np.repeat(np.diff(times[inside]) / counted, counted))
        generated.append(tokens[: inside[0] + 1].sum() + counted.sum() / 2)
    p10, p90 = np.percentile(np.concatenate(gaps), (10, 90))
    count = sum(len(one) for one in gaps)
    timing = Timing(float(np.median(means)), float(p10), float(p90), count)
    return SteadyPart(timing, float(np.mean(generated)))


class SteadyWatch:
    """Says while pieces come when the steady part has ``steps`` tokens of each of ``streams``."""

    def __init__(self, streams: Sequence[Stream], steps: int) -> None:
        self._streams = streams
        self._steps = steps
        self._since_start = [0] * len(streams)
        self._waiting = len(streams)

    def piece(self, index: int, time: float, tokens: int) -> bool:
        """Another piece of a stream, which is noted in it; true when all have enough."""
        stream = self._streams[index]
        self._waiting -= not stream.times
        stream.times.append(time)
        stream.tokens.append(tokens)
        if self._waiting == 0:
            self._since_start[index] += tokens
        # The second question is dear, and the answer is no as long as the first one's is.
        return min(self._since_start) >= self._steps and self._is_long_enough()

    def _is_long_enough(self) -> bool:
        """Where pieces come in bunches, a stream may have its tokens after another one's last."""
        start, end = _borders(self._streams)
        return all(_tokens_inside(one, start, end) >= self._steps for one in self._streams)


def _tokens_inside(stream: Stream, start: float, end: float) -> int:
    """Without the first piece in that time, whose tokens were computed before it."""
    pieces = zip(stream.times, stream.tokens, strict=True)
    return sum([tokens for time, tokens in pieces if start <= time <= end][1:])


def _borders(streams: Sequence[Stream]) -> tuple[float, float]:
    return max(s.times[0] for s in streams), min(s.times[-1] for s in streams)
