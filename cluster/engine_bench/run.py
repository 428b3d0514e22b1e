"""`crossdock bench engine` from its options to its result. No torch in here, but to see that there
is a GPU where one is to be measured.

The engine's processes run one after the other, then the servers are asked, one after the other:
two engines on the same cores would measure each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import uvloop

from cluster.demo_model import ensure_demo_model
from cluster.engine_bench.cases import (
    BLOCK_SIZE,
    Cases,
    check_memory,
    check_positions,
    choose_cases,
    choose_threads,
)
from cluster.engine_bench.child import ChildTask
from cluster.engine_bench.child_process import measure_in_child
from cluster.engine_bench.results import EngineBenchResult, ServerResult
from cluster.engine_bench.roofline import ModelWork
from cluster.engine_bench.server_runs import check_reachable, measure_server
from cluster.engine_bench.system_memory import read_buffer_bytes
from cluster.gpu import require_gpu
from cluster.model_folder import ModelFolder, find_model, read_model_folder, read_model_shape
from cluster.plan import resolve_dtype
from cluster.progress import Progress
from core.config import ClusterSpec
from core.errors import InvalidField
from core.kv_layout import DTYPE_BYTES
from core.step_budget import STEP_TOKENS
from engine.memory import available_memory
from engine.model_config import read_model_config
from tuner.load.openai_target import check_url


@dataclass(frozen=True, slots=True)
class EngineBenchOptions:
    """The options as they were typed; see ``cluster.cli.bench_engine``."""

    model: str | None
    dtype: str
    device: str
    random_weights: bool
    threads: str | None
    quick: bool
    prompts: str | None
    batches: str | None
    contexts: str | None
    against: tuple[str, ...]
    api_key: str | None


def run(options: EngineBenchOptions, progress: Progress) -> EngineBenchResult:
    """Raises ``InvalidField`` for an option, another ``CrossdockError`` if nothing can be run:
    both before anything is measured, as far as it can be known by then."""
    _check_device(options)
    usable = tuple(sorted(os.sched_getaffinity(0)))
    # On a GPU one process, with all cores.
    threads = (1,) if options.device == "cuda" else choose_threads(options.threads, len(usable))
    chunk = STEP_TOKENS[options.device]
    cases = choose_cases(options.quick, options.prompts, options.batches, options.contexts, chunk)
    _check_against(options)
    folder = find_model(options.model) if options.model else ensure_demo_model(progress)
    model = read_model_shape(folder) if options.random_weights else read_model_folder(folder)
    dtype = _choose_dtype(options, model)
    _check_room(options.device, cases, model, dtype)
    for url in options.against:
        uvloop.run(check_reachable(url, options.api_key))
    engine = tuple(
        measure_in_child(
            ChildTask(
                model_folder=str(folder),
                dtype=dtype,
                device=options.device,
                random_weights=options.random_weights,
                threads=count,
                cores=usable if options.device == "cuda" else usable[-count:],
                cases=cases,
            )
        )
        for count in threads
    )
    servers = tuple(_measure_server(url, options, model, cases, progress)
                    for url in options.against)  # fmt: skip
    return EngineBenchResult(model.name, dtype, options.random_weights, cases, engine, servers)


def _measure_server(
    url: str, options: EngineBenchOptions, model: ModelFolder, cases: Cases, progress: Progress
) -> ServerResult:
    measuring = measure_server(url, options.api_key, model.path, cases, progress.step)
    result: ServerResult = uvloop.run(measuring)
    return result


def _check_device(options: EngineBenchOptions) -> None:
    if options.device not in STEP_TOKENS:
        raise InvalidField("--device", options.device, "must be cpu or cuda")
    if options.device == "cuda":
        if options.threads is not None:
            raise InvalidField("--threads", options.threads, "a GPU computes: leave it out")
        require_gpu("--device")


def _check_against(options: EngineBenchOptions) -> None:
    for url in options.against:
        if options.random_weights:
            fix = "no server has these weights: leave out --random-weights, or this"
            raise InvalidField("--against", url, fix)
        check_url("--against", url, or_grpc=False)
    if options.api_key is not None and len(set(options.against)) != 1:
        fix = "is for one server: name exactly one with --against"
        raise InvalidField("--api-key", "(hidden)", fix)


def _choose_dtype(options: EngineBenchOptions, model: ModelFolder) -> str:
    given = options.dtype
    if given not in ("auto", *DTYPE_BYTES):
        names = ", ".join(("auto", *DTYPE_BYTES))
        raise InvalidField("--dtype", given, f"must be one of {names}")
    return resolve_dtype(_spec(options), model)


def _spec(options: EngineBenchOptions) -> ClusterSpec:
    engine = {"dtype": options.dtype, "device": options.device}
    return ClusterSpec.model_validate({"engine": engine})


def _check_room(device: str, cases: Cases, model: ModelFolder, dtype: str) -> None:
    check_positions(cases, model.max_positions)
    if device == "cuda":
        return  # The process that measures sees how much memory the GPU has.
    work = ModelWork(read_model_config(model.path), DTYPE_BYTES[dtype])
    other = work.weight_bytes + read_buffer_bytes()
    check_memory(cases, model.kv_layout(BLOCK_SIZE, dtype), other, available_memory())
