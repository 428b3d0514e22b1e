"""Opening several ways at once, all or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from core.errors import Incompatible

Opened = TypeVar("Opened")


async def open_all(
    openings: Iterable[Awaitable[Opened]], close: Callable[[], Awaitable[None]]
) -> list[Opened]:
    """Waits for all of them. If some failed, closes those that did not and raises one error.

    Raises `Incompatible` with all reasons; an error of another kind comes first.
    """
    results = await asyncio.gather(*openings, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if not failures:
        return [result for result in results if not isinstance(result, BaseException)]
    await close()
    reasons: list[str] = []
    for failure in failures:
        if not isinstance(failure, Incompatible):
            raise failure
        reasons.append(failure.message)
    raise Incompatible("; ".join(reasons), reason="NO_COMMON_TRANSPORT")
