"""While processes of a search may begin, Ctrl-C waits, and they inherit that it is not for them.
SIGTERM waits too."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest
from search_worlds import chat_trace

from core.config import ClusterSpec
from tuner import processes
from tuner.load.metrics import Slo
from tuner.search.bench import Traced
from tuner.search.evaluate import Goal
from tuner.search.laboratory import Laboratory

GIVEN = Traced(chat_trace(), ClusterSpec(), Goal(Slo(1.0, 0.05), 90.0), 0)


class Pool:
    """In the place of processes: notes for each task whether one that began with it would be deaf
    to Ctrl-C, which comes at the task of number ``press_at``."""

    def __init__(self) -> None:
        self.deaf: list[bool] = []
        self.press_at = -1
        self.signal = signal.SIGINT

    def submit(self, function: object, *given: object) -> Future[Any]:
        self._begin()
        done: Future[Any] = Future()
        done.set_result(None)
        return done

    def shutdown(self, cancel_futures: bool) -> None:
        pass

    def _begin(self) -> None:
        if len(self.deaf) == self.press_at:
            signal.raise_signal(self.signal)
        is_blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.deaf.append(is_blocked and not interrupts)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """That of the next laboratory. Ctrl-C is as in a terminal, whoever runs the tests."""
    pool = Pool()
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *args, **settings: pool)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield pool
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class OneTrial:
    """A course of one."""

    def __init__(self) -> None:
        self.attempt: object = "one"

    def take(self, trial: object) -> None:
        self.attempt = None


def search() -> None:
    with Laboratory(GIVEN, processes=2) as started:
        assert hears_of_it()
        course: Any = OneTrial()
        started._follow([course], cast(Any, started._processes))
        assert course.attempt is None
        assert hears_of_it()


def hears_of_it() -> bool:
    is_blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler and not is_blocked


def test_processes_that_begin_with_the_first_jobs_are_deaf_too(pool: Pool) -> None:
    search()
    assert pool.deaf == [True, True, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("task", [0, 1, 2])
def test_an_interruption_comes_when_they_have_begun(
    pool: Pool, task: int, number: signal.Signals
) -> None:
    pool.press_at, pool.signal = task, number
    with pytest.raises(KeyboardInterrupt):
        search()
    assert len(pool.deaf) == (3 if task == 2 else 2)
    assert hears_of_it()


def test_no_import_of_a_search_that_runs_swallows_an_interruption() -> None:
    """``numpy.random`` does; without these words it would be imported when a search begins."""
    is_missing = "import sys, tuner.search.laboratory; sys.exit('numpy.random' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", is_missing]).returncode == 0
