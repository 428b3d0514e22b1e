"""What all policies have in common: what they choose from, and what they choose.

A policy is pure: it sees columns and predicted times, and gives numbers of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.values import value
from router.prefix_index.held_blocks import Numbers
from router.routing.predictions import Predictions


class PolicyName(Enum):
    """As ``router.policy`` of a config."""

    KV_AWARE = "kv_aware"
    LEAST_LOADED = "least_loaded"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    PREFIX_AFFINITY = "prefix_affinity"


@dataclass(frozen=True, slots=True, eq=False)
class Eligible:
    """Who may get an attempt as what, never nobody: workers by number, rising.

    ``handoff``: those that may compute the prompt, and those that may take it over; None if nobody
    prefills for others. ``local``: those that may do both; None if none is to.
    """

    handoff: tuple[Numbers, Numbers] | None
    local: Numbers | None


@value()
class Choice:
    """Workers by number. Without ``prefill`` the decode worker computes the prompt, too."""

    decode: int
    prefill: int | None = None


class Policy(Protocol):
    """Keeps nothing but its own counts. ``random`` decides between equals."""

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice: ...


def lowest(among: Numbers, scores: npt.NDArray[Any], random: Random) -> int:
    """The number of the one with the lowest score; equal ones are as likely."""
    own = scores[among]
    return one_of(among[own == own[own.argmin()]].tolist(), random)


def all_lowest(among: Numbers, costs: npt.NDArray[np.float64]) -> list[int]:
    """The numbers of those with the lowest cost, rising."""
    own = costs[among]
    place = own.argmin()
    least = own.item(place)
    own[place] = math.inf
    if own.item(own.argmin()) != least:
        return [among.item(place)]
    own[place] = least
    equal: list[int] = among[own == least].tolist()
    return equal


def one_of(equals: Sequence[int], random: Random) -> int:
    """Each is as likely."""
    return random.choice(equals) if len(equals) > 1 else equals[0]
