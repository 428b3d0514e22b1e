"""torch's process groups, made directly: gloo on CPU, NCCL on GPUs.

There is no default group (a process may hold ranks of several), and nothing listens but gloo, on
the host that is named.
Does not cover: which ranks a group joins (``engine.process_group``), how they find each other
(``engine.rendezvous``).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.rendezvous import KeyValues, PrefixedStore

_TAG = 0  # Messages of one pair of ranks come in the order in which they were sent.


class Message:
    """A tensor on its way to another rank, or from it. It is kept alive until ``wait`` returns."""

    def __init__(self, work: dist.Work, x: torch.Tensor) -> None:
        self._work = work
        self._x = x

    def wait(self) -> None:
        """On GPUs it is the current stream that waits. Raises RuntimeError if the peer is lost."""
        self._work.wait()


class Group:
    """Some ranks that send each other tensors; ``rank`` counts within them."""

    def __init__(self, backend: Any, store: PrefixedStore, rank: int, size: int) -> None:
        """``backend``: Any, because torch states no types of its methods."""
        self._backend = backend
        self._store = store
        self.rank = rank
        self.others = tuple(other for other in range(size) if other != rank)

    def send(self, x: torch.Tensor, destination: int) -> Message:
        """Returns at once; ``x``, contiguous, must not be changed until the message has arrived."""
        return Message(self._backend.send([x], destination, _TAG), x)

    def receive(self, x: torch.Tensor, source: int) -> Message:
        """Fills ``x``, contiguous, until the message has arrived."""
        return Message(self._backend.recv([x], source, _TAG), x)

    def all_reduce(self, x: torch.Tensor) -> None:
        """Adds up ``x`` of all ranks in place, in the order that the backend likes."""
        self._backend.allreduce([x]).wait()

    def close(self) -> None:
        """Lets go of the connections: what the others wait for from here fails."""
        self._backend = None


class GroupMaker:
    """Makes the groups of one rank; those of gloo share one thread for their sockets.

    ``host``: address of this machine that the other ranks reach (NCCL finds its own). Every wait
    for a peer ends after ``timeout_s``.
    """

    def __init__(self, values: KeyValues, host: str, device: str, timeout_s: float) -> None:
        self._values = values
        self._device = torch.device(device)
        self._timeout = timedelta(seconds=timeout_s)
        if self._device.type != "cuda":
            self._sockets = dist.ProcessGroupGloo.create_device(hostname=host)

    def make(self, name: str, rank: int, size: int) -> Group:
        """Waits for the other ranks of the group. Raises RuntimeError or TimeoutError."""
        store = PrefixedStore(self._values, f"{name}/")
        make = self._nccl if self._device.type == "cuda" else self._gloo
        return Group(make(store, rank, size), store, rank, size)

    def _gloo(self, store: PrefixedStore, rank: int, size: int) -> Any:
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [self._sockets]
        options._timeout = self._timeout
        options._threads = 1
        return gloo(store, rank, size, options)

    def _nccl(self, store: PrefixedStore, rank: int, size: int) -> Any:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        group = dist.ProcessGroupNCCL(store, rank, size, options)
        # Connects now: the first step would pay for it otherwise, and fail in place of the start.
        group.eager_connect_single_device(self._device)
        return group
