"""Signals that break a command off: what is inside hears of Ctrl-C, the shell of the signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.interruption import Interrupted, interruptible
from cluster.validation import replay


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Whoever runs the tests."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def code_of(work: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as ended, interruptible("told"):
        work()
    return ended.value.code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_ends_the_command_with_its_number(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(lambda: signal.raise_signal(number)) == 128 + number
    assert capsys.readouterr().err == "told\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_work_on_a_loop_is_cancelled_as_by_ctrl_c() -> None:
    removed = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            removed.append(True)

    assert code_of(lambda: asyncio.run(work())) == 143
    assert removed == [True]


def test_who_heard_of_it_in_another_way_tells_its_number() -> None:
    def work() -> None:
        raise Interrupted(signal.SIGHUP)

    assert code_of(work) == 129


def test_a_measurement_that_takes_the_signals_itself_breaks_the_command_off_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After it they are the command's again."""

    coming: list[signal.Signals] = []

    async def run_bench(*given: object) -> object:
        for number in coming:
            signal.raise_signal(number)
            await asyncio.sleep(0)
        return SimpleNamespace(runs=["done"])

    def measure() -> None:
        replay.warm_up("http://127.0.0.1:1", Path())

    monkeypatch.setattr(replay, "run_bench", run_bench)
    for number in (signal.SIGTERM, signal.SIGINT):
        coming[:] = [number]
        assert code_of(measure) == 128 + number

    def measure_and_go_on() -> None:
        coming.clear()
        measure()
        signal.raise_signal(signal.SIGTERM)

    assert code_of(measure_and_go_on) == 143


def test_signals_that_are_ignored_stay_so_and_sigterm_ends_a_command_in_the_background() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    reached = []

    def work() -> None:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
        signal.raise_signal(signal.SIGTERM)

    assert code_of(work) == 143
    assert reached == [True]
