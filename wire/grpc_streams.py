"""The calling side of a gRPC stream, read and written with plain awaits.

Covers: one task that writes beside whoever reads, and an end at which both are over.
gRPC's request iterators are not used: one that still waits for something to send when its
stream ends is left to the garbage collector. Does not cover: what the messages mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


async def read(call: Any) -> Any | None:
    """The next message of a streaming call, None after its last; raises AioRpcError."""
    message = await call.read()
    return None if message is _EOF else message


@asynccontextmanager
async def written_by(call: Any, write: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs ``write`` beside the body, which reads ``call``; at the body's end both are over.

    If the stream ends, ``write`` ends in silence: reading tells why, after what is still to be
    read. Anything else that ``write`` raises cancels the call and is raised here.
    """
    writer = asyncio.create_task(_write(call, write))
    try:
        yield
    except asyncio.CancelledError:
        _raise_failure(writer)
        raise
    finally:
        writer.cancel()
        call.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def _write(call: Any, write: Callable[[], Awaitable[None]]) -> None:
    try:
        await write()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        if not call.done():
            call.cancel()
            raise
    except BaseException:
        call.cancel()
        raise


def _raise_failure(writer: asyncio.Task[None]) -> None:
    """Whoever reads gets a cancellation also if it was the writer that cancelled the call."""
    task = asyncio.current_task()
    if writer.done() and not writer.cancelled() and not (task and task.cancelling()):
        failure = writer.exception()
        if failure is not None:
            raise failure
