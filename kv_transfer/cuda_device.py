"""A GPU through torch.cuda. Loaded only where a pool lies on one."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


class CudaDevice:
    """`kv_transfer.device.Device` of one CUDA device; the engine computes on its default stream."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._device = torch.device("cuda", index)

    def use(self) -> None:
        torch.cuda.set_device(self._device)

    def new_stream(self) -> torch.cuda.Stream:
        # torch makes them non-blocking: the default stream does not wait for them by itself.
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def handle(self, stream: torch.cuda.Stream) -> int:
        return int(stream.cuda_stream)

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream)

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event: torch.cuda.Event = stream.record_event()
        return event

    def record_compute(self) -> torch.cuda.Event:
        return self.record(torch.cuda.default_stream(self._device))

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def compute_waits(self, event: torch.cuda.Event) -> None:
        torch.cuda.default_stream(self._device).wait_event(event)

    def is_over(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())  # type: ignore[no-untyped-call]

    def synchronize(self, stream: torch.cuda.Stream) -> None:
        stream.synchronize()

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=self._device)
