"""`crossdock tune`: how many prefill and decode workers, of which shape, for this traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import ConfigOption
from cluster.cli.output import Output, OutputOption, emit, print_table
from cluster.cli.simulate import ProfileOption


def tune(
    trace: Annotated[
        Path,
        typer.Argument(
            help="Mooncake JSONL, Azure or BurstGPT CSV, `bench --save` records, or YAML."
        ),
    ],
    gpus: Annotated[
        str | None, typer.Option(help="How many, for both pools: 16, or a built-in kind: h100:16.")
    ] = None,
    prefill_gpus: Annotated[
        str | None, typer.Option(help="For prefill only: h100:8, or 8 of --prefill-profile.")
    ] = None,
    decode_gpus: Annotated[
        str | None, typer.Option(help="For decode only: l40s:16, or 16 of --decode-profile.")
    ] = None,
    ttft: Annotated[str, typer.Option(help="Limit for the first token: 1s, 500ms.")] = "1s",
    tpot: Annotated[str, typer.Option(help="Limit for each further one: 50ms, 0.05.")] = "50ms",
    percentile: Annotated[
        float, typer.Option(help="So many percent of the requests meet both limits.")
    ] = 90.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Find the fewest (or cheapest) GPUs for so many requests per second."),
    ] = None,
    gpu_hour_price: Annotated[
        str | None, typer.Option(help="Of one GPU: 2.5, or by kind: h100=2.5,l40s=0.9.")
    ] = None,
    profile: ProfileOption = None,
    prefill_profile: Annotated[
        Path | None, typer.Option(help="Of the hardware of --prefill-gpus.")
    ] = None,
    decode_profile: Annotated[
        Path | None, typer.Option(help="Of the hardware of --decode-gpus.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For built-in kinds of GPUs: a built-in model's name, or a folder."),
    ] = None,
    config: ConfigOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many of the trace.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(help="Draw Pareto front and ratios into this .png or .html.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for cluster.yaml and values.yaml of the winner.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Search ratios, shapes and scheduler limits, with colocated serving as a rival.

    Cheap bounds first, then simulation with the production router and schedulers. The verdict says
    how sure it is, and may be: don't disaggregate.
    """
    from cluster.cli.tune_run import TuneOptions, run

    options = TuneOptions(
        trace=trace,
        gpus=gpus,
        prefill_gpus=prefill_gpus,
        decode_gpus=decode_gpus,
        ttft=ttft,
        tpot=tpot,
        percentile=percentile,
        rate=rate,
        gpu_hour_price=gpu_hour_price,
        profile=profile,
        prefill_profile=prefill_profile,
        decode_profile=decode_profile,
        model=model,
        config=config,
        limit=limit,
        seed=seed,
        plot=plot,
        out=out,
    )
    tuned = run(options)
    emit(tuned.as_json(), output, lambda: _print(tuned.text(), tuned.table(top), tuned.chart()))
    if tuned.result.verdict.winner is None:
        raise typer.Exit(1)


def _print(
    text: list[str], table: tuple[tuple[str, ...], list[tuple[str, ...]]], chart: str
) -> None:
    print("\n".join(text))
    print()
    print_table(*table)
    print()
    print(chart)
