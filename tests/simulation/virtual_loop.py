"""An event loop whose time jumps to the next timer: seconds of waiting take none."""

from __future__ import annotations

import asyncio
import selectors


class _Jump(selectors.SelectSelector):
    """Never waits: nothing comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, selectors._EventMask]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing is to happen"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time` begins at 0. For ``asyncio.Runner(loop_factory=VirtualLoop)``."""

    def __init__(self) -> None:
        self._clock = _Jump()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now
