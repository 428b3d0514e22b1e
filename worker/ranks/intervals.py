"""When a rank computed its last steps, for `status`, tests and people who ask what happened."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from crossdock.v1 import worker_pb2 as pb

_KEPT = 64
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class StepIntervals:
    """Of the last 64 steps, counted from 1; ``steps`` and ``busy_s`` (seconds) of all. Written by
    one thread, read by others."""

    def __init__(self) -> None:
        self.steps = 0
        self.busy_s = 0.0
        self._kept: deque[tuple[int, float, float]] = deque(maxlen=_KEPT)

    def timed(self, execute: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """``execute`` itself, with its time taken."""

        def timed_execute(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            start = time.monotonic()
            result = execute(*args, **kwargs)
            end = time.monotonic()
            self.steps += 1
            self.busy_s += end - start
            self._kept.append((self.steps, start, end))
            return result

        return timed_execute

    def to_wire(self) -> list[pb.StepInterval]:
        return [
            pb.StepInterval(step=step, start_s=start, end_s=end)
            for step, start, end in self._kept.copy()
        ]
