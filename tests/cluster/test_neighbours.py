"""How much neighbours slow a worker down: who is busy when, and what is made of the seconds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cluster.profiling.neighbours import NAMES, NeighbourWork, interference, measure_neighbours
from core.latency_profile import Interference

WORK = NeighbourWork(prompt_tokens=100, answer_tokens=10, rounds=2)


@dataclass
class Host:
    """What each worker is at, by name."""

    at: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeClient:
    """A worker on ``host``: what it is asked to do takes a second for each neighbour that decodes
    meanwhile, two for each that computes a prompt, and ten by itself."""

    name: str
    host: Host

    async def first_token(self, prompt_tokens: int = 16) -> float:
        assert prompt_tokens == WORK.prompt_tokens
        return await self._do("prefill") * 10

    async def answers(self, count: int, tokens: int) -> float:
        assert (count, tokens) == (2, WORK.answer_tokens)
        return await self._do("decode")

    async def _do(self, work: str) -> float:
        self.host.at[self.name] = work
        for _ in range(5):
            await asyncio.sleep(0)
        others = [at for name, at in self.host.at.items() if name != self.name]
        del self.host.at[self.name]
        return 10.0 + sum(1 if at == "decode" else 2 for at in others)


def measured(others: int) -> dict[str, float]:
    host = Host()
    names = [f"neighbour {i}" for i in range(others)]
    neighbours = [FakeClient(name, host) for name in names]
    seconds = asyncio.run(measure_neighbours(FakeClient("measured", host), neighbours, WORK))
    assert not host.at, "all have ended"
    return seconds


def test_each_work_is_measured_beside_each_other() -> None:
    assert measured(1) == {
        "decode beside nobody": 10,
        "decode beside decode": 11,
        "decode beside prefill": 12,
        "prefill beside nobody": 100,
        "prefill beside decode": 110,
        "prefill beside prefill": 120,
    }


def test_all_neighbours_are_busy_at_once() -> None:
    assert measured(3)["decode beside prefill"] == 16


def test_factors_are_how_many_times_as_long_it_takes() -> None:
    assert interference(measured(1)) == Interference(1.1, 1.2, 1.1, 1.2)


def test_nobody_is_faster_in_company() -> None:
    faster = measured(1) | {"decode beside decode": 9.0}
    found = interference(faster)
    assert found is not None
    assert found.decode_beside_decode == 1.0


@pytest.mark.parametrize("missing", NAMES)
def test_without_all_of_them_there_is_none(missing: str) -> None:
    seconds = measured(1)
    assert interference(seconds | {missing: 0.0}) is None
    del seconds[missing]
    assert interference(seconds) is None
