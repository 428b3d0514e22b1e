"""Compiles Triton kernels for GPUs that this machine need not have, and says what they use.

For processes in which TRITON_INTERPRET is not set when the kernels are imported (`run_python`).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CAPABILITIES = (80, 90, 100)
# Bytes of shared memory that one program may have (CUDA C++ Programming Guide, appendix on compute
# capabilities).
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


@dataclass(frozen=True, slots=True)
class Cubin:
    """What a kernel compiled for ``capability`` (90: sm90) uses.

    ``registers`` of each thread; ``spilled``: bytes of registers that each thread stores to local
    memory because they did not fit.
    """

    capability: int
    ptx: str
    shared: int
    registers: int
    spilled: int


def compile_kernel(
    kernel: Any,
    capability: int,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    aligned: Iterable[str] = (),
    **options: int,
) -> Cubin:
    """Compiles to cubin; AssertionError where it needs more shared memory than the GPU has.

    ``kernel``: decorated with ``triton.jit``, also under ``triton.autotune``. ``signature``:
    Triton's types ("*bf16", "i32", "fp32") of the arguments at run time; pointers, and the integers
    named by ``aligned``, count as multiples of 16. ``constants``: all ``tl.constexpr`` arguments.
    ``options``: num_warps, num_stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    types = dict(signature) | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in function.arg_names}
    multiples = {*aligned, *(name for name, kind in ordered.items() if kind.startswith("*"))}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(ordered) if name in multiples
    }
    source = ASTSource(function, ordered, dict(constants), attributes)
    log = io.StringIO()
    with _logged_compilation(), contextlib.redirect_stdout(log):
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options=dict(options)
        )
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    shared = int(compiled.metadata.shared)
    limit = SHARED_LIMITS[capability]
    assert shared <= limit, f"{shared} bytes of shared memory of {limit} on sm{capability}"
    return Cubin(capability, compiled.asm["ptx"], shared, *_registers(log.getvalue()))


@contextlib.contextmanager
def _logged_compilation() -> Any:
    """What the assembler says is only to be had while it runs: not from Triton's cache."""
    from triton import knobs

    with knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        yield


def _registers(log: str) -> tuple[int, int]:
    used = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes spill stores", log)
    assert used is not None, f"ptxas said nothing of registers: {log}"
    assert spilled is not None, f"ptxas said nothing of spills: {log}"
    return int(used[1]), int(spilled[1])


def run_python(program: str, interpret: bool) -> str:
    """Runs a program with the tests' own paths, kernels interpreted or compiled; its output."""
    environment = os.environ | {
        "TRITON_INTERPRET": str(int(interpret)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate()
    except BaseException:
        # A test that ran out of time leaves no compilers behind.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    assert child.returncode == 0, errors
    return output
