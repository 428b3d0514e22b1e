"""The process that measures the engine: with one number of threads, pinned to its own cores, or on
a GPU.

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
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from cluster.engine_bench.cases import BLOCK_SIZE, Cases, check_memory
from cluster.engine_bench.results import (
    DecodeResult,
    EngineResult,
    PrefillResult,
    StepOverhead,
    engine_words,
)
from cluster.engine_bench.roofline import MachineRates, ModelWork
from cluster.engine_bench.timing import Timing
from cluster.process_binding import bind_process
from cluster.progress import StderrProgress
from core.errors import CrossdockError

if TYPE_CHECKING:
    from engine.model_config import ModelConfig
    from engine.runner import LoadedModel


@dataclass(frozen=True, slots=True)
class ChildTask:
    """``dtype``: a resolved one. ``cores``: as many as ``threads`` on a CPU; ``device``: "cpu" or
    "cuda". ``random_weights``: the folder needs no more than a config.json."""

    model_folder: str
    dtype: str
    device: str
    random_weights: bool
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
    from engine.dtypes import torch_dtype
    from engine.model_config import read_model_config

    config, dtype = read_model_config(Path(task.model_folder)), torch_dtype(task.dtype)
    work = ModelWork(config, dtype.itemsize)
    if task.device == "cuda":
        _check_device_memory(task, config, work)
    _progress(task, "what the machine can do")
    before = _rates(task, config)
    measured = _measure_engine(task, config)
    _progress(task, "what the machine can do, again")
    return _beside_floors(task, measured, before.best(_rates(task, config)), work)


def _check_device_memory(task: ChildTask, config: ModelConfig, work: ModelWork) -> None:
    import torch

    from cluster.engine_bench.device_rates import SIZES

    free, _ = torch.cuda.mem_get_info()
    # Q, K, V and gate, up are joined while the parts are still there.
    weights = 2 * work.weight_bytes
    layout = config.kv_layout(BLOCK_SIZE, task.dtype)
    check_memory(task.cases, layout, weights + SIZES.held_bytes, free)


def _rates(task: ChildTask, config: ModelConfig) -> MachineRates:
    import torch

    from cluster.engine_bench.device_rates import measure_device_rates
    from cluster.engine_bench.machine_rates import measure_rates
    from engine.dtypes import torch_dtype

    dtype = torch_dtype(task.dtype)
    if task.device == "cpu":
        return measure_rates(config, dtype, task.cases.chunk)
    return measure_device_rates(dtype, torch.device(task.device))


@dataclass(frozen=True, slots=True)
class _Measured:
    """``prefill`` by length, ``decode`` by context and batch."""

    prefill: dict[int, Timing]
    decode: dict[tuple[int, int], Timing]
    overhead: StepOverhead | None


def _measure_engine(task: ChildTask, config: ModelConfig) -> _Measured:
    from cluster.engine_bench.engine_runs import EngineRuns
    from cluster.engine_bench.step_overhead import measure_step_overhead

    cases, folder = task.cases, Path(task.model_folder)
    _progress(task, "loading the model")
    model = _load(task, config)
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
    overhead = None
    # A GPU has not computed when forward returns, and text needs a tokenizer.
    if task.device == "cpu" and not task.random_weights:
        _progress(task, "a step with the scheduler around it")
        overhead = measure_step_overhead(model, folder, cases.steps)
    model.pool.close()
    return _Measured(prefill, decode, overhead)


def _load(task: ChildTask, config: ModelConfig) -> LoadedModel:
    """With the graphs of a decode worker, for the largest batch."""
    from engine.dtypes import torch_dtype
    from engine.random_weights import random_weights
    from engine.runner import make_runner
    from engine.weights import load_weights

    folder, dtype = Path(task.model_folder), torch_dtype(task.dtype)
    if task.random_weights:
        weights = random_weights(config, dtype, task.device, seed=0)
    else:
        weights = load_weights(folder, config, dtype, task.device)
    return make_runner(
        config,
        weights,
        dtype=task.dtype,
        device=task.device,
        num_blocks=task.cases.num_blocks(BLOCK_SIZE),
        block_size=BLOCK_SIZE,
        max_decodes=max(task.cases.batches),
    )


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
        device=task.device,
        threads=task.threads,
        cores=task.cores,
        kernels=_kernels(task),
        machine=machine,
        prefill=prefill,
        decode=tuple(decode),
        overhead=measured.overhead,
    )


def _kernels(task: ChildTask) -> str:
    import torch

    from engine.dtypes import torch_dtype
    from kernels.dispatch import description

    said = description(task.device, torch_dtype(task.dtype))
    return f"{said} on {torch.cuda.get_device_name()}" if task.device == "cuda" else said


def _progress(task: ChildTask, text: str) -> None:
    StderrProgress().step(f"{engine_words(task.device, task.threads)}: {text}")


def _end_with_stdin() -> None:
    # Not sys.stdin: a thread that waits in it would hold up the interpreter's end.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
