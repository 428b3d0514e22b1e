"""What is known of one request after it ended, and the times that follow from it.

Pure. Times are seconds since the start of the run. Latencies count from the planned arrival and
not from the moment of sending: a generator that is late must not make the server look quicker.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

INTERRUPTED = "INTERRUPTED"
NOT_FINISHED = "NOT_FINISHED"
TIMEOUT = "TIMEOUT"
CONNECT_FAILED = "CONNECT_FAILED"
DISCONNECTED = "DISCONNECTED"
MALFORMED_STREAM = "MALFORMED_STREAM"
STREAM_ERROR = "STREAM_ERROR"
NO_TOKENS = "NO_TOKENS"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request as the server counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class RequestRecord:
    """``sent_s`` is None if it never was; ``chunk_times_s`` when each piece of the answer came,
    ``chunk_tokens`` how many tokens it held, where the server says so; ``usage`` None if the
    server sent none. ``error``: "" or the kind of failure, ``detail`` its words."""

    seed: int
    index: int
    planned_s: float
    wanted_prompt_tokens: int
    wanted_output_tokens: int
    sent_s: float | None = None
    ended_s: float | None = None
    chunk_times_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int | None, ...] = ()
    usage: Usage | None = None
    error: str = ""
    detail: str = ""

    @property
    def is_complete(self) -> bool:
        return not self.error

    @property
    def lag_s(self) -> float | None:
        """How late the request was sent."""
        return None if self.sent_s is None else self.sent_s - self.planned_s

    @property
    def ttft_s(self) -> float | None:
        """Planned arrival to the first piece of the answer."""
        return self.chunk_times_s[0] - self.planned_s if self.chunk_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """Planned arrival to the last piece of the answer."""
        return self.chunk_times_s[-1] - self.planned_s if self.chunk_times_s else None

    @property
    def output_tokens(self) -> int:
        """As the server counted; else as its pieces say, a piece that says nothing being one."""
        if self.usage is not None:
            return self.usage.completion_tokens
        return sum(1 if tokens is None else tokens for tokens in self.chunk_tokens)

    @property
    def tpot_s(self) -> float | None:
        """(last − first piece) / (tokens − 1); None for an answer of one token."""
        if self.output_tokens < 2 or not self.chunk_times_s:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.output_tokens - 1)

    @cached_property
    def itls_s(self) -> npt.NDArray[np.float64]:
        """Time between tokens, float64 [tokens after the first piece].

        A piece with k tokens that comes g seconds after the one before is k times g / k.
        """
        weights = _tokens_of_chunks(self.chunk_tokens, self.output_tokens)[1:]
        gaps = np.diff(np.asarray(self.chunk_times_s, dtype=np.float64))
        return np.repeat(gaps / weights, weights)

    def as_json(self) -> dict[str, Any]:
        """All fields, and the latencies that follow from them."""
        derived = {
            "lag_s": self.lag_s,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "e2e_s": self.e2e_s,
        }
        return asdict(self) | derived


def _tokens_of_chunks(counts: tuple[int | None, ...], total: int) -> npt.NDArray[np.int64]:
    """Tokens in each piece, at least 1; where pieces don't say, ``total`` is spread evenly."""
    if None in counts:
        edges = np.arange(len(counts) + 1, dtype=np.int64) * total // len(counts)
        return np.maximum(np.diff(edges), 1)
    return np.maximum(np.array(counts, dtype=np.int64), 1)
