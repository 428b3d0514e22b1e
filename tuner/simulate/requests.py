"""The requests of a simulation as arrays: when they arrive, how long they are, what they share.

Pure. Does not cover: reading traces (``tuner.load.traces``), drawing synthetic ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from core.block_hash import TokenArray
from core.errors import InvalidField
from core.tenants import DEFAULT_TENANT

Lengths = npt.NDArray[np.int32]

# What is longer is a slip of units.
MAX_DURATION_S = 366 * 86_400.0
# First token id of the part of a prompt that no other request shares.
_PRIVATE = 1 << 30
_NO_PARTS: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class RequestTrace:
    """``arrivals_s``: float64 [n], rising, from 0; ``prompt_tokens``, ``output_tokens``: int32 [n],
    1 or more each.

    ``shared``: for each request the ids of the leading parts of its prompt, ``part_tokens`` tokens
    each; two prompts share as many leading tokens as they have equal ids in front. Empty: none
    shares anything. ``tenants``: whose each request is. Empty: all are the default tenant's.
    """

    name: str
    arrivals_s: npt.NDArray[np.float64]
    prompt_tokens: Lengths
    output_tokens: Lengths
    shared: Sequence[npt.NDArray[np.int32]] = ()
    part_tokens: int = 512
    tenants: Sequence[str] = ()

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

    def tenant(self, index: int) -> str:
        return self.tenants[index] if self.tenants else DEFAULT_TENANT

    def prompt(self, index: int) -> TokenArray:
        """Token ids, int32: numbers that are equal exactly where prompts are shared."""
        tokens = np.empty(int(self.prompt_tokens[index]), dtype=np.int32)
        parts, size = self._parts(index), self.part_tokens
        shared = min(len(tokens), len(parts) * size)
        whole = shared // size
        tokens[: whole * size].reshape(whole, size)[:] = parts[:whole, np.newaxis]
        tokens[whole * size : shared] = parts[whole : whole + 1]
        tokens[shared:] = _PRIVATE + index
        return tokens

    def _parts(self, index: int) -> npt.NDArray[np.int32]:
        """Ids of the parts that it may share, int32."""
        return self.shared[index] if len(self.shared) else _NO_PARTS

    def faster(self, factor: float) -> RequestTrace:
        """The same requests in 1 / ``factor`` of the time."""
        return replace(self, arrivals_s=self.arrivals_s / factor)

    @property
    def rate(self) -> float:
        """Requests per second on average; 0 for a single moment."""
        return (len(self) - 1) / self.duration_s if self.duration_s else 0.0

    def at_rate(self, rate: float) -> RequestTrace:
        """The same requests at ``rate`` per second on average, in the same pattern."""
        if not self.rate:
            fix = f"{self.name} has all its requests at one moment: it has no rate to be changed"
            raise InvalidField("rate", rate, fix)
        if self.duration_s * self.rate / rate > MAX_DURATION_S:
            raise InvalidField("rate", rate, "the trace would last longer than a year; raise it")
        return self.faster(rate / self.rate)

    def first(self, count: int) -> RequestTrace:
        """The ``count`` that come first."""
        return self._part(slice(0, count))

    def repeated(self, times: int) -> RequestTrace:
        """One after the other, each as new as the first: no copy shares prompts with another."""
        pause = self.duration_s / max(1, len(self) - 1)
        return _joined(self.name, [self] * times, pause)

    def resampled(self, generator: np.random.Generator, parts: int = 10) -> RequestTrace:
        """As many requests, in ``parts`` runs of consecutive ones drawn with replacement (block
        bootstrap: Künsch, "The jackknife and the bootstrap for general stationary observations",
        Annals of Statistics 17(3), 1989)."""
        parts = min(parts, len(self))
        length, longer = divmod(len(self), parts)
        lengths = [length + 1] * longer + [length] * (parts - longer)
        runs = [(int(generator.integers(0, len(self) - n + 1)), n) for n in lengths]
        pause = self.duration_s / max(1, len(self) - 1)
        return _joined(self.name, [self._part(slice(s, s + n)) for s, n in runs], pause)

    def reordered(self, generator: np.random.Generator) -> RequestTrace:
        """The same arrivals, with the lengths in another order. Raises ``InvalidField`` for a trace
        whose prompts are shared: their order matters."""
        if len(self.shared):
            raise InvalidField("trace", self.name, "shares prompts: keep its order")
        order = generator.permutation(len(self))
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[order],
            output_tokens=self.output_tokens[order],
            tenants=[self.tenants[i] for i in order] if self.tenants else (),
        )

    def _part(self, chosen: slice) -> RequestTrace:
        arrivals = self.arrivals_s[chosen]
        return RequestTrace(
            self.name,
            arrivals - arrivals[0],
            self.prompt_tokens[chosen],
            self.output_tokens[chosen],
            self.shared[chosen],
            self.part_tokens,
            self.tenants[chosen],
        )


def _joined(name: str, traces: Sequence[RequestTrace], pause_s: float) -> RequestTrace:
    """One after the other, ``pause_s`` between them. Ids of shared parts are made different."""
    starts = np.cumsum([0.0, *(trace.duration_s + pause_s for trace in traces)])[:-1]
    shared: list[npt.NDArray[np.int32]] = []
    used = 0
    for trace in traces:
        shared += [ids + np.int32(used) for ids in trace.shared]
        used += 1 + max((int(ids.max()) for ids in trace.shared if len(ids)), default=0)
        if used >= _PRIVATE:
            raise InvalidField("trace", name, f"more than {_PRIVATE} shared parts; repeat it less")
    return RequestTrace(
        name,
        np.concatenate([t.arrivals_s + s for t, s in zip(traces, starts, strict=True)]),
        np.concatenate([trace.prompt_tokens for trace in traces]),
        np.concatenate([trace.output_tokens for trace in traces]),
        shared,
        traces[0].part_tokens,
        [name for trace in traces for name in trace.tenants],
    )
