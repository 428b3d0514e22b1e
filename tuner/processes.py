"""Processes that compute for this one and hear no Ctrl-C: it ends them, without a word of theirs.

Does not cover: what they compute (``tuner.search.laboratory``, ``cluster.validation``).
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Processes:
    """A pool; a context manager that ends its processes, at once after an error."""

    def __init__(
        self,
        count: int,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """Starts ``count``. Each calls ``initializer`` with ``initargs`` before its first task."""
        self._others: Sequence[BaseProcess] = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(
            count,
            # Threads of the parent must not be forked into the middle of what they do.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=initializer,
            initargs=initargs,
        )
        try:
            with _starting_processes():
                for _ in range(count):
                    self._pool.submit(int)  # Each starts one, unless one is done already.
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        with _starting_processes():  # Those that were not needed until now.
            return self._pool.submit(function, task)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._kill()
        self._pool.shutdown(cancel_futures=True)

    def _kill(self) -> None:
        for child in multiprocessing.active_children():
            if child not in self._others:
                child.kill()


@contextmanager
def _starting_processes() -> Iterator[None]:
    """Ctrl-C is for this process alone, from the first moment of a child's life: it inherits which
    signals are blocked. This process hears of it at the end."""
    resource_tracker.ensure_running()  # Else it begins with the first child and unblocks them.
    with _interrupted_later():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Signals that have a handler reach it at the end. That one is blocked here is not enough:
    another thread takes it, and this one is interrupted all the same. A child whose parent is
    interrupted while it tells it what to do would complain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {n: h for n in _ENDING if callable(h := signal.getsignal(n))}
    came: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # Whatever went wrong meanwhile: a child may have heard of it, too.
        if came:
            handlers[signal.Signals(came[0])](came[0], None)
