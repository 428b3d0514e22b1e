"""How fast the device of one rank is at best, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass

DECLARED, DATA_SHEET, MEASURED = "declared", "data sheet", "measured"


@dataclass(frozen=True, slots=True)
class PeakRates:
    """``flops``: dense FLOP/s at the served precision; ``bandwidth``: bytes/s of memory.

    ``source``: DECLARED in the config, by the DATA_SHEET, or MEASURED when the worker started.
    """

    flops: float
    bandwidth: float
    source: str
