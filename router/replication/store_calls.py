"""Calls to Redis that are bounded in time, and those that many make at once, in one message.

Does not cover: which calls there are (``router.replication.redis_store``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

Answer = TypeVar("Answer")
_PLAIN_WORD = re.compile(r"[A-Za-z]+('t)?[.,]?")


class StoreLost(Exception):
    """Redis failed, or did not answer in time. The text says which, and no key or value."""


async def bounded(call: Awaitable[Answer], limit_s: float) -> Answer:
    """Its answer; raises ``StoreLost``."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            # After a pause of this process itself the answer may be there already.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if task.done():
            return task.result()
        raise StoreLost(f"no answer within {limit_s:g} s")
    except (RedisError, OSError) as error:
        raise StoreLost(_why(error)) from None
    finally:
        task.cancel()


def _why(error: Exception) -> str:
    """Redis repeats keys, values and addresses in some of its errors: only the plain words before
    the first of these are told."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    words = takewhile(_PLAIN_WORD.fullmatch, str(error).split(" "))
    return f"{type(error).__name__}: {' '.join(words)}".removesuffix(": ")


class BatchedScript:
    """A script that Redis knows by ``sha``. Calls of the same turn of the event loop go together:
    a message costs several times what a call in it does."""

    def __init__(self, redis: Redis, sha: str) -> None:
        self._redis = redis
        self._sha = sha
        self._waiting: list[tuple[Sequence[str], Sequence[Any], asyncio.Future[Any]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def call(self, keys: Sequence[str], args: Sequence[Any], limit_s: float) -> Any:
        """Raises ``StoreLost``; if one of those that go together fails, all do."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, args, answer))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._send(limit_s))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await answer

    async def _send(self, limit_s: float) -> None:
        batch, self._waiting = self._waiting, []
        try:
            answers = await bounded(self._ask([(keys, args) for keys, args, _ in batch]), limit_s)
        except StoreLost as error:
            for *_, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (*_, waiting), answer in zip(batch, answers, strict=True):
            if not waiting.done():
                waiting.set_result(answer)

    async def _ask(self, batch: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        if len(batch) == 1:
            [(keys, args)] = batch
            return [await self._redis.evalsha(self._sha, len(keys), *keys, *args)]
        calls = self._redis.pipeline(transaction=False)
        for keys, args in batch:
            calls.evalsha(self._sha, len(keys), *keys, *args)
        return await calls.execute()
