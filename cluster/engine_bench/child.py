"""The process that measures the engine with one number of threads, pinned to its own cores.

    python -m cluster.engine_bench.child

Reads one line of JSON (``ChildTask``) from stdin, writes one line (``EngineResult``, or the error)
to stdout. Ends when stdin is closed: it never outlives the command that started it. Progress goes
to stderr if that is a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from cluster.engine_bench.cases import BLOCK_SIZE, Cases
from cluster.engine_bench.results import (
    DecodeResult,
    EngineResult,
    PrefillResult,
    StepOverhead,
)
from cluster.engine_bench.roofline import MachineRates, ModelWork
from cluster.engine_bench.timing import Timing
from cluster.process_binding import bind_process
from cluster.progress import StderrProgress
from core.errors import CrossdockError


@dataclass(frozen=True, slots=True)
class ChildTask:
    """``dtype``: a resolved one. ``cores``: as many as ``threads``."""

    model_folder: str
    dtype: str
    threads: int
    cores: tuple[int, ...]
    cases: Cases


def main() -> int:
    task = TypeAdapter(ChildTask).validate_json(sys.stdin.readline())
    bind_process(task.cores, task.threads)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        result = measure(task)
    except CrossdockError as error:
        print(json.dumps({"reason": error.reason, "message": error.message}))
        return 1
    print(TypeAdapter(EngineResult).dump_json(result).decode())
    return 0


def measure(task: ChildTask) -> EngineResult:
    """Everything with one loaded model. The machine's rates are taken before and after it."""
    # Imported only now: torch reads the affinity of the process when it is imported.
    from cluster.engine_bench.machine_rates import measure_rates
    from engine.dtypes import torch_dtype
    from engine.model_config import read_model_config

    config, dtype = read_model_config(Path(task.model_folder)), torch_dtype(task.dtype)
    _progress(task, "what the machine can do")
    before = measure_rates(config, dtype, task.cases.chunk)
    measured = _measure_engine(task)
    _progress(task, "what the machine can do, again")
    machine = before.best(measure_rates(config, dtype, task.cases.chunk))
    return _beside_floors(task, measured, machine, ModelWork(config, dtype.itemsize))


@dataclass(frozen=True, slots=True)
class _Measured:
    """``prefill`` by length, ``decode`` by context and batch."""

    prefill: dict[int, Timing]
    decode: dict[tuple[int, int], Timing]
    overhead: StepOverhead


def _measure_engine(task: ChildTask) -> _Measured:
    from cluster.engine_bench.engine_runs import EngineRuns
    from cluster.engine_bench.step_overhead import measure_step_overhead
    from engine.runner import load_runner

    cases, folder = task.cases, Path(task.model_folder)
    _progress(task, "loading the model")
    blocks = cases.num_blocks(BLOCK_SIZE)
    model = load_runner(
        folder, dtype=task.dtype, device="cpu", num_blocks=blocks, block_size=BLOCK_SIZE
    )
    runs = EngineRuns(model, cases.chunk)
    runs.fill_pool()
    prefill, decode = {}, {}
    for tokens in cases.prompts:
        _progress(task, f"prefill of {tokens} tokens")
        prefill[tokens] = runs.prefill(tokens, cases.runs)
    for context in cases.contexts:
        for batch in cases.batches:
            _progress(task, f"decode, context {context}, batch {batch}")
            decode[context, batch] = runs.decode(batch, context, cases.steps)
    _progress(task, "a step with the scheduler around it")
    overhead = measure_step_overhead(model, folder, cases.steps)
    model.pool.close()
    return _Measured(prefill, decode, overhead)


def _beside_floors(
    task: ChildTask, measured: _Measured, machine: MachineRates, work: ModelWork
) -> EngineResult:
    prefill = tuple(
        PrefillResult(tokens, timing, work.prefill_floor_s(machine, tokens))
        for tokens, timing in measured.prefill.items()
    )
    decode = []
    for (context, batch), timing in measured.decode.items():
        mean = task.cases.mean_context(context)
        floor = work.decode_floor_s(machine, batch, mean)
        decode.append(DecodeResult(batch, context, timing, mean, floor))
    return EngineResult(
        threads=task.threads,
        cores=task.cores,
        kernels=_kernels(task.dtype),
        machine=machine,
        prefill=prefill,
        decode=tuple(decode),
        overhead=measured.overhead,
    )


def _kernels(dtype: str) -> str:
    from engine.dtypes import torch_dtype
    from kernels.dispatch import description

    return description("cpu", torch_dtype(dtype))


def _progress(task: ChildTask, text: str) -> None:
    StderrProgress().step(f"{task.threads} thread{'s' * (task.threads > 1)}: {text}")


def _end_with_stdin() -> None:
    # Not sys.stdin: a thread that waits in it would hold up the interpreter's end.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
