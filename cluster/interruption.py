"""Commands that end by a signal as they end by Ctrl-C: quietly, with all removed that they began.

Does not cover: commands that serve, which drain first (``cluster.stop_signal``).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LIKE_CTRL_C = (signal.SIGTERM, signal.SIGHUP)
# As shells say it of a command that a signal ended.
_EXIT_CODE = 128


class Interrupted(KeyboardInterrupt):
    """By the signal of ``number``, for those who had to hear of it in another way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interruptible(told: str = "interrupted") -> Iterator[None]:
    """What is inside hears of SIGTERM and SIGHUP as of Ctrl-C, unless they are ignored. Then
    ``told`` goes to stderr, and the process ends with 128 and the signal's number."""
    came: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        came.append(number)
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):  # Ignored, as that of a shell's command in the background.
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    before = {n: signal.getsignal(n) for n in _LIKE_CTRL_C}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    except KeyboardInterrupt as error:
        print(told, file=sys.stderr)
        own = error.number if isinstance(error, Interrupted) else signal.SIGINT
        sys.exit(_EXIT_CODE + (came[0] if came else own))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
