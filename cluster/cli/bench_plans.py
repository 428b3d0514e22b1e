"""The load that the options of `crossdock bench` ask for: a preset, changed, or a trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from cluster.cli.options import refuse_given
from core.errors import InvalidField
from tuner.load.arrivals import ArrivalKind
from tuner.load.plan import Plan, plan_rate, plan_trace
from tuner.load.quantities import parse_range, parse_rate, parse_seconds, parse_seeds
from tuner.load.traces import read_trace
from tuner.load.workload import PRESETS, Preset, PromptPart

Choice = TypeVar("Choice", bound=StrEnum)

DEFAULT_PRESET = "mixed"
DEFAULT_RATE = 1.0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options as they were typed; None for one that was not."""

    preset: str | None = None
    rate: float | None = None
    arrivals: str | None = None
    duration: str | None = None
    seeds: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    trace: Path | None = None
    speed: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """``arrivals`` and ``workload`` say in words what ``plans`` hold."""

    plans: tuple[Plan, ...]
    arrivals: str
    workload: str


def make_load(options: LoadOptions) -> Load:
    """Raises ``InvalidField`` naming the option."""
    if options.trace is not None:
        return _from_trace(options, options.trace)
    only_traces = {"--speed": options.speed, "--limit": options.limit}
    refuse_given(only_traces, "belongs to --trace; leave it out")
    preset = _preset(options)
    kind = choose("--arrivals", options.arrivals or ArrivalKind.POISSON, ArrivalKind)
    rate = parse_rate("--rate", DEFAULT_RATE if options.rate is None else options.rate)
    plans = tuple(
        plan_rate(kind, rate, preset.duration_s, preset.workload, seed) for seed in preset.seeds
    )
    times = f"{preset.duration_s:g} s × {len(plans)} seed{'s' if len(plans) > 1 else ''}"
    return Load(plans, f"{kind.value}, {rate:g} requests/s, {times}", str(preset.workload))


def choose(option: str, text: str, kinds: type[Choice]) -> Choice:
    """The member that is written ``text``; raises ``InvalidField``."""
    try:
        return kinds(text)
    except ValueError:
        names = ", ".join(kind.value for kind in kinds)
        raise InvalidField(option, text, f"must be one of {names}") from None


def _from_trace(options: LoadOptions, path: Path) -> Load:
    in_trace = {
        "--preset": options.preset,
        "--rate": options.rate,
        "--arrivals": options.arrivals,
        "--duration": options.duration,
        "--input-tokens": options.input_tokens,
        "--output-tokens": options.output_tokens,
    }
    refuse_given(in_trace, "a trace says this itself; leave it out")
    speed = parse_rate("--speed", 1.0 if options.speed is None else options.speed)
    seeds = parse_seeds("--seeds", options.seeds or "0")
    entries = read_trace(path, options.limit)
    plans = tuple(plan_trace(entries, speed, seed) for seed in seeds)
    return Load(plans, f"trace at {speed:g} × its speed", f"{len(entries)} requests of {path.name}")


def _preset(options: LoadOptions) -> Preset:
    """The preset with all that the other options change in it."""
    name = options.preset or DEFAULT_PRESET
    preset = PRESETS.get(name)
    if preset is None:
        raise InvalidField("--preset", name, f"must be one of {', '.join(PRESETS)}")
    workload = preset.workload
    if options.input_tokens is not None:
        part = PromptPart(1.0, parse_range("--input-tokens", options.input_tokens))
        workload = replace(workload, prompts=(part,))
    if options.output_tokens is not None:
        answers = parse_range("--output-tokens", options.output_tokens)
        workload = replace(workload, outputs=answers)
    return Preset(
        workload,
        preset.duration_s
        if options.duration is None
        else parse_seconds("--duration", options.duration),
        preset.seeds if options.seeds is None else parse_seeds("--seeds", options.seeds),
    )
