"""Files that others replace while this process runs, such as certificates before they expire.

Covers: noticing that they changed, keeping what was usable last. Does not cover: what they hold.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from core.errors import InvalidField

_log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")
_Stamp = tuple[int, int, int] | None


class Renewal(Generic[Loaded]):
    """What ``load`` makes of the files at ``paths``; ``load`` raises ``InvalidField`` if they can't
    be used, and so does the first look. From any thread."""

    def __init__(self, paths: Sequence[str], load: Callable[[], Loaded]) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._lock = threading.Lock()
        self._stamps = _stamps(self._paths)
        self._loaded = load()

    def newest(self) -> Loaded:
        """Of the files as they are now, or as they were when they could be used last. Quick if
        nothing changed: call it for every connection."""
        with self._lock:
            # Taken before they are read: a change in between is seen at the next look.
            stamps = _stamps(self._paths)
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
            return self._loaded

    def _renew(self) -> None:
        try:
            self._loaded = self._load()
        except InvalidField as error:
            _log.warning("what was read before stays in use: %s", error.message)
        else:
            _log.info("%s: renewed", self._paths[0])


def _stamps(paths: Sequence[str]) -> tuple[_Stamp, ...]:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: str) -> _Stamp:
    """Differs if the file does; also where a link to it was turned, as Kubernetes does."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
