"""The result of `crossdock bench engine` for people and for programs. Pure.

Sides are compared by the first column of each: "1 thread" is the engine alone, a letter is a
server over HTTP. Ratios are relative to each server that was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any

from cluster.engine_bench.results import (
    DecodeResult,
    EngineBenchResult,
    EngineResult,
    PrefillResult,
    ServerResult,
    StepOverhead,
    engine_words,
)

Result = PrefillResult | DecodeResult
Row = tuple[str, ...]
_NONE = "–"


@dataclass(frozen=True, slots=True)
class Side:
    """The engine with so many threads, or a server; ``name`` as in the tables."""

    name: str
    is_server: bool
    prefill: tuple[PrefillResult, ...]
    decode: tuple[DecodeResult, ...]


def sides_of(result: EngineBenchResult) -> list[Side]:
    engine = [Side(_engine_name(e), False, e.prefill, e.decode) for e in result.engine]
    names = server_names(result)
    servers = [
        Side(name, True, s.prefill, s.decode) for name, s in zip(names, result.servers, strict=True)
    ]
    return engine + servers


def server_names(result: EngineBenchResult) -> list[str]:
    """A, B, …; S27 and so on after the alphabet."""
    count = len(result.servers)
    return [ascii_uppercase[i] if i < 26 else f"S{i + 1}" for i in range(count)]


def _engine_name(engine: EngineResult) -> str:
    return engine_words(engine.device, engine.threads)


def share_of_floor(result: Result) -> float | None:
    """Floor over measured: 1 is as fast as the machine's rates allow."""
    if result.timing is None or result.floor_s is None:
        return None
    return result.floor_s / result.timing.median_s


def speed_ratio(ours: Result, theirs: Result) -> float | None:
    """How many times as long ``theirs`` takes for the same case."""
    if ours.timing is None or theirs.timing is None:
        return None
    return theirs.timing.median_s / ours.timing.median_s


def prefill_table(result: EngineBenchResult) -> tuple[Row, list[Row]]:
    """Columns and rows; by length, then by side."""
    sides = sides_of(result)
    servers = [side for side in sides if side.is_server]
    columns = ("tokens", "measured", "ms", "p10–p90", "tokens/s", "floor ms", "share")
    rows = []
    for i, tokens in enumerate(result.cases.prompts):
        for side in sides:
            one = side.prefill[i]
            rate = None if one.timing is None else tokens / one.timing.median_s
            ratios = [speed_ratio(one, s.prefill[i]) for s in servers]
            rows.append(
                (
                    *(str(tokens), side.name, *_times(one), _number(rate, 0), *_floor(one)),
                    *(_number(ratio, 2) for ratio in ratios),
                )
            )
    return columns + tuple(f"tokens/s ÷ {s.name}" for s in servers), rows


def decode_table(result: EngineBenchResult) -> tuple[Row, list[Row]]:
    """Columns and rows; by context and batch, then by side."""
    sides = sides_of(result)
    servers = [side for side in sides if side.is_server]
    columns = ("context", "batch", "measured", "ms/step", "p10–p90", "floor ms", "share")
    rows = []
    for i, case in enumerate(sides[0].decode):
        for side in sides:
            one = side.decode[i]
            ratios = [_inverse(speed_ratio(one, s.decode[i])) for s in servers]
            rows.append(
                (
                    *(str(case.context), str(case.batch), side.name, *_times(one), *_floor(one)),
                    *(_number(ratio, 2) for ratio in ratios),
                )
            )
    return columns + tuple(f"ms ÷ {s.name}" for s in servers), rows


def headings(result: EngineBenchResult) -> list[str]:
    """What the columns "measured" stand for."""
    weights = ", random weights" if result.random_weights else ""
    lines = [
        f"{result.model}, {result.dtype}{weights}, "
        f"prompts in chunks of {result.cases.chunk} tokens",
        _engine_heading(result.engine),
        *(f"  {_machine_line(engine)}" for engine in result.engine),
        *(f"  kernels: {kernels}" for kernels in sorted({e.kernels for e in result.engine})),
    ]
    if result.servers:
        lines.append("over HTTP, its doors and queues included:")
    for name, server in zip(server_names(result), result.servers, strict=True):
        lines.append(f"  {name}: {server.url}, model {server.model} ({server.sent})")
    return lines


def overhead_lines(result: EngineBenchResult) -> list[str]:
    """None where it was not measured."""
    measured = [(_engine_name(e), e.overhead) for e in result.engine if e.overhead is not None]
    return [f"{name}: {_overhead_line(overhead)}" for name, overhead in measured]


def notes(result: EngineBenchResult) -> list[str]:
    """What was not measured and why, and what makes numbers less comparable."""
    lines = []
    for name, server in zip(server_names(result), result.servers, strict=True):
        lines += [f"{name}: {warning}" for warning in server.warnings]
        lines += [f"{name}, {_case(one)}: not measured: {one.failure}" for one in _failed(server)]
        lines += [
            f"{name}, {_case(one)}: {one.mean_context:.0f} tokens of context on average"
            for one in server.decode
            if one.timing is not None and one.mean_context > 1.25 * one.context
        ]
    return lines


def as_json(result: EngineBenchResult) -> dict[str, Any]:
    """Everything, seconds and bytes as measured, with shares and ratios."""
    return {
        "model": result.model,
        "dtype": result.dtype,
        "random_weights": result.random_weights,
        "cases": asdict(result.cases),
        "engine": [
            asdict(engine) | {"measured": "engine only"} | _cases_json(engine, result.servers)
            for engine in result.engine
        ],
        "servers": [
            asdict(server) | {"measured": "over HTTP"} | _cases_json(server, result.servers)
            for server in result.servers
        ],
        "notes": notes(result),
    }


def _cases_json(
    side: EngineResult | ServerResult, servers: Sequence[ServerResult]
) -> dict[str, Any]:
    def one(case: Result, others: list[Result]) -> dict[str, Any]:
        # By the server's number: one may be named twice.
        times = [speed_ratio(case, other) for other in others]
        return asdict(case) | {"share": share_of_floor(case), "times_as_fast": times}

    return {
        "prefill": [one(c, [s.prefill[i] for s in servers]) for i, c in enumerate(side.prefill)],
        "decode": [one(c, [s.decode[i] for s in servers]) for i, c in enumerate(side.decode)],
    }


def _engine_heading(engine: Sequence[EngineResult]) -> str:
    if engine[0].device != "cpu":
        return "engine alone, no server:"
    cores = ", ".join(str(core) for core in max((e.cores for e in engine), key=len))
    return f"engine alone, no server, a process for each number of threads, on cores {cores}:"


def _machine_line(engine: EngineResult) -> str:
    rates = engine.machine
    return (
        f"{_engine_name(engine)}: reads {rates.read_bytes_per_s / 1e9:.1f} GB/s "
        f"({rates.read_by}), products {rates.flops_per_s / 1e9:.0f} GFLOP/s ({rates.product_by})"
    )


def _overhead_line(overhead: StepOverhead) -> str:
    return (
        f"a step of {overhead.batch} takes {_ms(overhead.step_s)} ms, "
        f"{_ms(overhead.forward_s)} of it in the model, {_ms(overhead.outside_s)} outside: "
        f"plan {_ms(overhead.plan_s)}, arrays and sampling {_ms(overhead.arrays_and_sampling_s)}, "
        f"booking {_ms(overhead.book_s)}, text {_ms(overhead.text_s)}"
    )


def _failed(server: ServerResult) -> list[Result]:
    cases: list[Result] = [*server.prefill, *server.decode]
    return [one for one in cases if one.timing is None]


def _case(one: Result) -> str:
    if isinstance(one, PrefillResult):
        return f"prefill of {one.tokens}"
    return f"decode, context {one.context}, batch {one.batch}"


def _times(one: Result) -> Row:
    if one.timing is None:
        return (_NONE, _NONE)
    timing = one.timing
    return f"{timing.median_s * 1e3:.1f}", f"{timing.p10_s * 1e3:.1f}–{timing.p90_s * 1e3:.1f}"


def _floor(one: Result) -> Row:
    floor = None if one.floor_s is None else one.floor_s * 1e3
    return _number(floor, 1), _number(share_of_floor(one), 2)


def _inverse(ratio: float | None) -> float | None:
    return None if ratio is None else 1 / ratio


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
