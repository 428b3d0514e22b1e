"""The nouns of routing: who the workers are, how busy they are, and where an attempt goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from core.outputs import Load
from core.request import Role
from core.values import value


# A tuple, as it is looked up for each message: hashing a dataclass takes several times as long.
class WorkerId(NamedTuple):
    """One life of a worker: after a restart it has a new epoch and is another worker."""

    name: str
    epoch: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the policy knows of one worker. ``num_blocks`` is the size of its KV pool."""

    worker: WorkerId
    role: Role
    num_blocks: int
    load: Load


@value()
class Forecast:
    """What routing expected of a placement when it chose it.

    ``ttft_s``: seconds from dispatch to the first token, ``tpot_s``: to each further one; 0 if it
    has no idea. ``prefill_held``, ``decode_held``: leading blocks of the prompt that its workers
    have cached.
    """

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    prefill_held: int = 0
    decode_held: int = 0


NO_FORECAST = Forecast()


class Mode(Enum):
    """How an attempt is placed: by a handoff; on the decode worker alone, because nobody prefills
    for others (LOCAL) or though others do (DIRECT): it answers sooner, or they can't."""

    HANDOFF = "handoff"
    LOCAL = "local"
    DIRECT = "direct"


@value()
class Placement:
    """Where an attempt runs. Without ``prefill`` the decode worker prefills by itself;
    ``is_direct``: though others could have."""

    decode: WorkerId
    prefill: WorkerId | None = None
    forecast: Forecast = field(default=NO_FORECAST, compare=False)
    is_direct: bool = False

    @property
    def workers(self) -> tuple[WorkerId, ...]:
        return (self.decode,) if self.prefill is None else (self.decode, self.prefill)

    @property
    def mode(self) -> Mode:
        if self.prefill is not None:
            return Mode.HANDOFF
        return Mode.DIRECT if self.is_direct else Mode.LOCAL


class Disaggregation(Enum):
    """AUTO: the decode worker does it all where that answers sooner, and without a prefill worker.
    PREFER: only without a prefill worker. ALWAYS: never, requests are refused instead."""

    AUTO = "auto"
    PREFER = "prefer"
    ALWAYS = "always"
