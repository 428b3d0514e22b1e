"""What came into a prefix cache and what left it, until somebody asks.

Net changes only: what came and left again in between is told to nobody. It is written down until
then as it comes, as mostly blocks only come or only go between two questions.
Does not cover: who is told (``worker``), the cache (``core.prefix_cache``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from core.block_hash import HashArray

NO_HASHES: HashArray = np.empty(0, dtype=np.uint64)
_Hashes = int | HashArray


class CacheChanges:
    """Hashes, in the order of their coming and going. It grows until it is drained, and keeps the
    arrays that it is given: nobody may change them."""

    def __init__(self) -> None:
        # Whether they came; else they went.
        self._log: list[tuple[bool, _Hashes]] = []

    def stored(self, hashes: _Hashes) -> None:
        self._log.append((True, hashes))

    def removed(self, hashes: _Hashes) -> None:
        self._log.append((False, hashes))

    def drain(self) -> tuple[HashArray, HashArray]:
        """(stored, removed) since the last call. No hash is in both."""
        log, self._log = self._log, []
        if not log:
            return NO_HASHES, NO_HASHES
        stored = [hashes for came, hashes in log if came]
        removed = [hashes for came, hashes in log if not came]
        return _net(log) if stored and removed else (_joined(stored), _joined(removed))


def _joined(parts: list[_Hashes]) -> HashArray:
    arrays = [hashes for hashes in parts if not isinstance(hashes, int)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays) if arrays else NO_HASHES
    values: list[int] = []
    for hashes in parts:
        if isinstance(hashes, int):
            values.append(hashes)
        else:
            values += hashes.tolist()
    return _hashes(values)


def _listed(hashes: _Hashes) -> list[int]:
    return [hashes] if isinstance(hashes, int) else hashes.tolist()


def _net(log: list[tuple[bool, _Hashes]]) -> tuple[HashArray, HashArray]:
    """Opposite changes of one hash cancel each other."""
    stored: dict[int, None] = {}
    removed: dict[int, None] = {}
    for came, hashes in log:
        into, opposite = (stored, removed) if came else (removed, stored)
        values = _listed(hashes)
        again = [value for value in values if value in opposite] if opposite else []
        into.update(dict.fromkeys(values))
        for value in again:
            del opposite[value], into[value]
    return _hashes(stored), _hashes(removed)


def _hashes(values: Iterable[int]) -> HashArray:
    """Several times as fast as `np.array`."""
    return np.frombuffer(array("Q", values), dtype=np.uint64)
