"""Memory of one process on a GPU, mapped by another on the same machine (CUDA IPC).

Loaded only where a pool lies on a GPU. Does not cover: what lies in that memory, when to read it
(``kv_transfer.cuda_ipc``).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.dlpack import from_dlpack

from core.errors import Incompatible


@dataclass(frozen=True, slots=True)
class ExportedMemory:
    """``handle``: what CUDA gives for the whole allocation; the tensor begins ``offset`` bytes in
    it. Of ``size`` bytes."""

    handle: bytes
    offset: int
    size: int


class MappedMemory(Protocol):
    """Another process's tensor. ``bytes``: uint8 [size], read-only by agreement."""

    bytes: torch.Tensor

    def close(self) -> None:
        """Unmaps it; call when nothing on the GPU reads it any more, and once."""


class IpcMemory(Protocol):
    """CUDA IPC, or what tests put in its place."""

    def export(self, tensor: torch.Tensor) -> ExportedMemory: ...

    def open(self, exported: ExportedMemory) -> MappedMemory:
        """On the calling thread's GPU. Raises ``RuntimeError`` if CUDA can't."""


class CudaIpcMemory:
    """Through cupy's CUDA runtime. Raises `Incompatible` if cupy is not installed."""

    def __init__(self) -> None:
        try:
            self._cupy = importlib.import_module("cupy")
        except ImportError as error:
            raise Incompatible(
                f"CUDA IPC can't be used: {error}; install crossdock[gpu]",
                reason="CUPY_NOT_INSTALLED",
            ) from error

    def export(self, tensor: torch.Tensor) -> ExportedMemory:
        address = tensor.data_ptr()
        handle: bytes = self._cupy.cuda.runtime.ipcGetMemHandle(address)
        size = tensor.numel() * tensor.element_size()
        return ExportedMemory(handle, address - _start_of_allocation(address), size)

    def open(self, exported: ExportedMemory) -> MappedMemory:
        address = self._cupy.cuda.runtime.ipcOpenMemHandle(exported.handle)
        return _Mapped(self._cupy, address, exported)


class _Mapped:
    def __init__(self, cupy: Any, address: int, exported: ExportedMemory) -> None:
        self._cupy = cupy
        self._address = address
        memory = cupy.cuda.UnownedMemory(address, exported.offset + exported.size, owner=None)
        pointer = cupy.cuda.MemoryPointer(memory, exported.offset)
        array = cupy.ndarray(exported.size, dtype=cupy.uint8, memptr=pointer)
        self.bytes: torch.Tensor = from_dlpack(array)

    def close(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self._cupy.cuda.runtime.ipcCloseMemHandle(self._address)


def _start_of_allocation(address: int) -> int:
    """A handle stands for a whole allocation of CUDA; torch's tensors lie somewhere in one."""
    driver = ctypes.CDLL("libcuda.so.1")
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    code = driver.cuMemGetAddressRange_v2(
        ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address)
    )
    if code != 0:
        raise RuntimeError(f"cuMemGetAddressRange failed with CUDA error {code}")
    return base.value


def open_all(memory: IpcMemory, exported: Sequence[ExportedMemory]) -> list[MappedMemory]:
    """All of them, or none is left open. Raises ``RuntimeError`` as `IpcMemory.open`."""
    with contextlib.ExitStack() as opened:
        mapped = []
        for item in exported:
            mapped.append(memory.open(item))
            opened.callback(mapped[-1].close)
        opened.pop_all()
    return mapped
