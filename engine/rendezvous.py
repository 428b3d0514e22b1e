"""How the ranks of a replica find each other: a few keys and values that all of them see.

Covers: the store that torch's process groups ask for, over any such keys and values.
Does not cover: how keys and values travel (``worker.ranks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from torch._C._distributed_c10d import Store


class KeyValues(Protocol):
    """Shared by the ranks of one replica. Called from several threads."""

    def set(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes:
        """Waits until some rank has set it. Raises TimeoutError, or what ended the wait."""

    def has(self, key: str) -> bool:
        """Whether some rank has set it. Raises what ended the replica."""


class PrefixedStore(Store):
    """The keys of one process group. The deadline of a wait is that of ``values``.

    torch calls it from C++ and does not keep the Python object alive: whoever makes a process group
    with it must.
    """

    def __init__(self, values: KeyValues, prefix: str) -> None:
        super().__init__()
        self._values = values
        self._prefix = prefix

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else value
        self._values.set(self._prefix + key, data)

    def get(self, key: str) -> bytes:
        return self._values.get(self._prefix + key)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        del timeout
        for key in keys:
            self.get(key)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are set, at once: NCCL's watchdog looks whether another rank gave up."""
        return all(self._values.has(self._prefix + key) for key in keys)

    def clone(self) -> PrefixedStore:
        """For another thread, which may as well use this one; and nobody would keep a new one
        alive."""
        return self
