"""What only a GPU can show: kernels, stream order, CUDA IPC and NCCL (``scripts/gpu-check``).

None of these has a stand-in: without the GPUs that a test names it is skipped, and says so.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from block_region_cases import CASES, LARGE, Case, check_case
from elementwise_triton_cases import check_kernels
from hypothesis import given, settings

from kernels.checksum_blocks import checksum_blocks
from kernels.pack_blocks import pack_blocks, unpack_blocks

pytestmark = pytest.mark.gpu

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_one = pytest.mark.skipif(GPUS < 1, reason=f"needs 1 GPU, this machine has {GPUS}")
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs, this machine has {GPUS}")


@needs_one
def test_kernels_large() -> None:
    check_case(LARGE, pack_blocks, unpack_blocks, checksum_blocks, "cuda")


@needs_one
@settings(max_examples=100)
@given(CASES)
def test_kernels_of_every_shape(case: Case) -> None:
    check_case(case, pack_blocks, unpack_blocks, checksum_blocks, "cuda")


@needs_one
def test_norm_rotation_and_gate() -> None:
    check_kernels("cuda", examples=200)


@needs_one
def test_a_pool_larger_than_32_bits_of_words() -> None:
    """4.3 G words of 8 bits: offsets in the kernels are 64 bits wide."""
    shape = (4200, 32, 2, 8, 16, 128)
    pool = torch.zeros(shape, dtype=torch.uint8, device="cuda")
    pool[-1] = 7
    region = LARGE.region
    ids = torch.tensor([shape[0] - 1], device="cuda")
    staging = torch.empty(1, region.row_bytes(pool), dtype=torch.uint8, device="cuda")
    pack_blocks(pool, ids, region, staging)
    assert bool((staging == 7).all())


@needs_one
def test_a_transfer_waits_for_a_long_computation() -> None:
    from kv_transfer.cuda_device import CudaDevice

    device = CudaDevice(0)
    stream = device.new_stream()
    pool = torch.zeros(64, 4, 2, 4, 16, 64, dtype=torch.bfloat16, device="cuda")
    ids = torch.arange(64, device="cuda")
    region = LARGE.region
    staging = torch.zeros(64, region.row_bytes(pool), dtype=torch.uint8, device="cuda")
    big = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(10):
        big = big @ big
    pool.fill_(1)
    device.wait(stream, device.record_compute())
    with device.on(stream):
        pack_blocks(pool, ids, region, staging)
    device.synchronize(stream)
    assert bool((staging.view(torch.bfloat16) == 1).all())


@needs_one
def test_nccl_sends_to_itself() -> None:
    """One rank, send and receive in one group: what cupy and this NCCL do on this GPU."""
    import cupy.cuda.nccl as nccl

    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    source = torch.arange(1 << 20, dtype=torch.uint8, device="cuda")
    target, stream = torch.zeros_like(source), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.default_stream())
    nccl.groupStart()
    communicator.send(source.data_ptr(), source.numel(), nccl.NCCL_UINT8, 0, stream.cuda_stream)
    communicator.recv(target.data_ptr(), target.numel(), nccl.NCCL_UINT8, 0, stream.cuda_stream)
    nccl.groupEnd()
    stream.synchronize()
    assert torch.equal(source, target)
    communicator.check_async_error()
    communicator.destroy()


@needs_one
def test_a_communicator_can_be_aborted_from_another_thread() -> None:
    """One that waits for nobody: a communicator of one rank can't."""
    import cupy.cuda.nccl as nccl

    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    aborting = threading.Thread(target=communicator.abort)
    aborting.start()
    aborting.join(30)
    assert not aborting.is_alive()


PREFILL = "import gpu_processes as p, sys; p.serve(sys.argv[1], int(sys.argv[2]))"


@pytest.fixture
def prefill(request: pytest.FixtureRequest) -> Iterator[Prefill]:
    with Prefill(*request.param) as process:
        yield process


class Prefill:
    """A process that holds a pool on a GPU and offers it; ends when its input does."""

    def __init__(self, transport: str, gpu: int) -> None:
        self._ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", PREFILL, transport, str(gpu)],
            stdin=theirs,
            stdout=theirs,
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)} | _environment(),
        )
        theirs.close()
        self._lines = self._ours.makefile("rw")

    def ask(self, what: str) -> str:
        self._lines.write(what + "\n")
        self._lines.flush()
        return self._lines.readline().strip()

    def __enter__(self) -> Prefill:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._ours.close()
        self._process.wait(60)


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@needs_one
@pytest.mark.parametrize("prefill", [("cuda_ipc", 0)], indirect=True)
def test_cuda_ipc_between_two_processes_on_one_gpu(prefill: Prefill) -> None:
    import gpu_processes

    gpu_processes.check_copies(prefill.ask, "cuda_ipc", gpu=0)


@needs_two
@pytest.mark.parametrize("prefill", [("cuda_ipc", 1)], indirect=True)
def test_cuda_ipc_between_two_gpus(prefill: Prefill) -> None:
    import gpu_processes

    gpu_processes.check_copies(prefill.ask, "cuda_ipc", gpu=0)


@needs_two
@pytest.mark.parametrize("prefill", [("nccl", 1)], indirect=True)
def test_nccl_between_two_gpus(prefill: Prefill) -> None:
    import gpu_processes

    gpu_processes.check_copies(prefill.ask, "nccl", gpu=0)
