"""A stand-in for CUDA graphs on a CPU: replays by calling the same function again.

It checks what makes such a function fit for a graph: that a replay reads only memory that the
capture read, at the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from engine.cuda_graphs import Replay


class ReplayingRecorder:
    """A `Recorder`. ``replays`` counts them."""

    def __init__(self) -> None:
        self.replays = 0

    def capture(self, compute: Callable[[], None]) -> Replay:
        compute()
        captured = _addresses_read(compute)

        def replay() -> None:
            self.replays += 1
            read = _addresses_read(compute)
            assert read == captured, "a replay reads other memory than was captured"

        return replay


def _addresses_read(compute: Callable[[], None]) -> set[int]:
    """Storages that existed before and were given to any of torch's operations."""
    with _Reads() as reads:
        compute()
    return reads.outside


class _Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.outside: set[int] = set()
        # Kept alive, so that no later tensor gets the address of an earlier one.
        self._made: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = _storages((args, kwargs))
        self.outside |= given.keys() - self._made.keys()
        result = func(*args, **(kwargs or {}))
        for address, tensor in _storages(result).items():
            if address not in given and address not in self.outside:
                self._made[address] = tensor
        return result


def _storages(values: object) -> dict[int, torch.Tensor]:
    """By address; without oneDNN's packed weights, whose memory torch does not show."""
    leaves, _ = tree_flatten(values)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel()]
    tensors = [tensor for tensor in tensors if not tensor.is_mkldnn]
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
