"""`crossdock simulate`: traffic on a cluster in virtual time, decided by the production code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import (
    ConfigOption,
    DecodeOption,
    DecodePPOption,
    DecodeTPOption,
    ModelOption,
    PrefillOption,
    PrefillPPOption,
    PrefillTPOption,
)
from cluster.cli.output import Output, OutputOption, emit, print_table

if TYPE_CHECKING:
    from cluster.cli.simulated import Simulated

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        help="What `crossdock profile` wrote; else the newest of this machine, else a modelled one."
    ),
]


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(
            help="Mooncake JSONL, Azure or BurstGPT CSV, `bench --save` records, or YAML."
        ),
    ],
    config: ConfigOption = None,
    model: ModelOption = None,
    profile: ProfileOption = None,
    prefill: PrefillOption = None,
    decode: DecodeOption = None,
    prefill_tp: PrefillTPOption = None,
    prefill_pp: PrefillPPOption = None,
    decode_tp: DecodeTPOption = None,
    decode_pp: DecodePPOption = None,
    one_host: Annotated[
        bool,
        typer.Option(
            "--one-host", help="All workers on one machine like the profiled one: share its cores."
        ),
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second on average; else the trace's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many of the trace.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of ties, and of described traffic. By default 0, or that of the description.",
        ),
    ] = None,
    slo_ttft: Annotated[
        str | None, typer.Option(help="Limit for goodput: 1s, 500ms; else the config's slo.ttft.")
    ] = None,
    slo_tpot: Annotated[
        str | None, typer.Option(help="Limit for goodput: 50ms; else the config's slo.tpot.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latencies and pools into this .png, .svg or .html.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Predict TTFT, TPOT, ITL and goodput of a cluster for recorded or described traffic.

    Router, schedulers, block pools and handoff are the ones that serve; only the times of steps
    and transfers come from the profile. The same seed gives the same numbers.
    """
    from cluster.cli.simulate_run import SimulateOptions, run

    overrides: dict[str, object] = {
        "model": model,
        "pools.prefill.replicas": prefill,
        "pools.decode.replicas": decode,
        "pools.prefill.tensor_parallel_size": prefill_tp,
        "pools.prefill.pipeline_parallel_size": prefill_pp,
        "pools.decode.tensor_parallel_size": decode_tp,
        "pools.decode.pipeline_parallel_size": decode_pp,
    }
    options = SimulateOptions(
        trace=trace,
        config=config,
        overrides=overrides,
        profile=profile,
        one_host=one_host,
        rate=rate,
        limit=limit,
        seed=seed,
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        plot=plot,
    )
    simulated = run(options)
    emit(simulated.as_json(), output, lambda: _print(simulated))
    if not simulated.summary.completed:
        raise typer.Exit(1)


def _print(simulated: Simulated) -> None:
    for line in simulated.headings():
        print(line)
    print()
    print_table(*simulated.table())
    print()
    print_table(*simulated.pools_table())
    if errors := simulated.summary.errors:
        print()
        rows = [(kind, str(e.count), e.example) for kind, e in errors.items()]
        print_table(("error", "count", "first one"), rows)
