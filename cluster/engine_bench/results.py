"""What was measured of the engine with so many threads, or of a server. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.engine_bench.cases import Cases
from cluster.engine_bench.roofline import MachineRates
from cluster.engine_bench.timing import Timing


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """One prompt of ``tokens``; over HTTP: from sending it to its first token. ``timing`` None: it
    could not be measured, ``failure`` says why. ``floor_s``: see ``roofline``."""

    tokens: int
    timing: Timing | None
    floor_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """One step of ``batch`` sequences; ``mean_context``: tokens of a sequence, on average over the
    measured steps. Otherwise as above."""

    batch: int
    context: int
    timing: Timing | None
    mean_context: float
    floor_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class StepOverhead:
    """Medians over decode steps of ``batch`` sequences with the production scheduler in the loop.

    ``step_s``: from one step's delivery to the next one's; ``forward_s``: of it in the model;
    ``outside_s``: the rest, made of planning, arrays and sampling, booking the tokens, and text.
    """

    batch: int
    step_s: float
    forward_s: float
    outside_s: float
    plan_s: float
    arrays_and_sampling_s: float
    book_s: float
    text_s: float


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The engine without any server, in a process of its own. ``kernels``: which implementation of
    the operations ran, and why. ``overhead`` None: not on a GPU, nor with random weights."""

    device: str
    threads: int
    cores: tuple[int, ...]
    kernels: str
    machine: MachineRates
    prefill: tuple[PrefillResult, ...]
    decode: tuple[DecodeResult, ...]
    overhead: StepOverhead | None


def engine_words(device: str, threads: int) -> str:
    """What an engine is called: its threads on a CPU, else its device."""
    if device != "cpu":
        return device
    return f"{threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True, slots=True)
class ServerResult:
    """A server, over HTTP. ``sent``: how it was asked, in words."""

    url: str
    model: str
    sent: str
    prefill: tuple[PrefillResult, ...]
    decode: tuple[DecodeResult, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineBenchResult:
    """``servers`` in the order in which they were named."""

    model: str
    dtype: str
    random_weights: bool
    cases: Cases
    engine: tuple[EngineResult, ...]
    servers: tuple[ServerResult, ...]
