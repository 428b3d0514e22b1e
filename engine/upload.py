"""A step's arrays on their way to the device: packed into one buffer, one copy, no waiting.

A copy from ordinary memory makes the host wait for the device; from pinned memory it does not, and
one copy of everything costs one launch. Arrays begin at multiples of 16 bytes, which kernels load
quickest. The buffer may be filled again only after the copy was done: whoever fills it waits for
the device once a step (``engine.runner``).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

_ALIGNMENT = 16


class Upload:
    """Takes arrays to ``device``. On a CPU they are used where they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._seen: tuple[Array, ...] = ()
        self._tensors: list[torch.Tensor] = []

    def to_device(self, arrays: tuple[Array, ...]) -> list[torch.Tensor]:
        """Tensors like ``arrays``, contiguous; enqueued on the current stream."""
        if self._device.type == "cpu":
            return self._in_place(arrays)
        return unpacked(self.packed(arrays).to(self._device, non_blocking=True), arrays)

    def _in_place(self, arrays: tuple[Array, ...]) -> list[torch.Tensor]:
        """Steps that follow each other mostly have the same arrays, with other values in them."""
        if len(arrays) != len(self._seen) or not all(map(operator.is_, arrays, self._seen)):
            self._tensors = [torch.from_numpy(array) for array in arrays]
            self._seen = arrays
        return self._tensors

    def packed(self, arrays: Sequence[Array]) -> torch.Tensor:
        """uint8 [n] in host memory (pinned, if the device is none); valid until the next call."""
        size = packed_size(arrays)
        if size > len(self._buffer):
            # Pinning takes milliseconds: sizes that grow step by step are not followed one by one.
            pinned = self._device.type == "cuda"
            self._buffer = torch.empty(2 * size, dtype=torch.uint8, pin_memory=pinned)
        flat = self._buffer[:size]
        raw = flat.numpy()
        for start, array in zip(_starts(arrays), arrays, strict=True):
            place = raw[start : start + array.nbytes].view(array.dtype)
            np.copyto(place.reshape(array.shape), array)
        return flat


def packed_size(arrays: Iterable[Array]) -> int:
    """Bytes of all arrays, one after the other."""
    return sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)


def unpacked(flat: torch.Tensor, arrays: Sequence[Array]) -> list[torch.Tensor]:
    """Views of uint8 ``flat`` where arrays of these shapes and dtypes were packed."""
    return [
        flat[start : start + array.nbytes].view(_dtype(array)).view(array.shape)
        for start, array in zip(_starts(arrays), arrays, strict=True)
    ]


def _starts(arrays: Sequence[Array]) -> list[int]:
    return [packed_size(arrays[:i]) for i in range(len(arrays))]


def _dtype(array: Array) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
