"""Requests of random tokens to one router over HTTP, and how long their answers take.

Does not cover: load as a user describes it (``tuner.load``).
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from statistics import median

import aiohttp
import numpy as np

from core.errors import Unavailable

# Of prompts that only begin an answer.
SHORT_PROMPT = 16
# The first tokens of an answer: others that began with it still compute their prompts.
_UNSETTLED = 3


class Client:
    """Sends prompts of random token ids: no cache knows them. ``model``: as the router calls it."""

    def __init__(self, http: aiohttp.ClientSession, model: str, vocab_size: int) -> None:
        self._http = http
        self._model = model
        self._random = np.random.default_rng()
        self._vocab_size = vocab_size

    async def first_token(self, prompt_tokens: int = SHORT_PROMPT) -> float:
        """Seconds until the only token of an answer."""
        started = time.perf_counter()
        arrivals = await self._answer(prompt_tokens, 1)
        return arrivals[0] - started

    async def answers(self, count: int, tokens: int) -> float:
        """So many answers at the same time, to their end. Seconds from one token to the next: the
        median; 0 if there are too few."""
        arrivals = await asyncio.gather(*(self._answer(SHORT_PROMPT, tokens) for _ in range(count)))
        gaps = [late - early for one in arrivals for early, late in pairwise(one[_UNSETTLED:])]
        return median(gaps) if gaps else 0.0

    async def _answer(self, prompt_tokens: int, tokens: int) -> list[float]:
        """When its parts arrived."""
        body = self._body(prompt_tokens, tokens)
        async with self._http.post("/v1/completions", json=body) as response:
            await _require_ok(response)
            return [time.perf_counter() async for _ in response.content.iter_any()]

    def _body(self, prompt_tokens: int, tokens: int) -> dict[str, object]:
        prompt = self._random.integers(0, self._vocab_size, prompt_tokens).tolist()
        settings = {"temperature": 0, "ignore_eos": True, "stream": True}
        return {"model": self._model, "prompt": prompt, "max_tokens": tokens, **settings}


async def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = await response.text()
        raise Unavailable(f"the router answers {response.status}: {text}", reason="ROUTER_FAILED")
