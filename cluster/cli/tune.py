"""`crossdock tune`: how many prefill and decode workers, of which shape, for this traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import ConfigOption
from cluster.cli.output import Output, OutputOption, emit, print_table
from cluster.cli.simulate import ProfileOption

if TYPE_CHECKING:
    from cluster.cli.tune_run import Tuned


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
    ttft: Annotated[
        str | None, typer.Option(help="Limit for the first token: 1s, 500ms; else the config's.")
    ] = None,
    tpot: Annotated[
        str | None, typer.Option(help="Limit for each further one: 50ms; else the config's.")
    ] = None,
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
    prefill_nodes: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL=VALUE",
            help="For values.yaml: nodes with --prefill-gpus, such as "
            "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3.",
        ),
    ] = None,
    decode_nodes: Annotated[
        str | None,
        typer.Option(metavar="LABEL=VALUE", help="The same for --decode-gpus."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For built-in kinds of GPUs: a built-in model's name, or a folder."),
    ] = None,
    config: ConfigOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many of the trace.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The same seed gives the same answer. By default 0, or that of the description.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(help="Draw Pareto front and ratios into this .png or .html.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the winner's cluster.yaml and values.yaml; may be new."),
    ] = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Then serve the best here and measure them: takes minutes."
        ),
    ] = False,
    configurations: Annotated[
        int | None, typer.Option(min=1, help="--validate so many, and their rivals; by default 3.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="--validate at these requests/s: 0.5,1; else half of the best, and 0.9."),
    ] = None,
    replay_time: Annotated[
        str | None, typer.Option(help="Of the trace, for each --validate run; by default 60s.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps --validate runs; those there are not measured again."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Search ratios, shapes and scheduler limits, with colocated serving as a rival.

    Cheap bounds first, then simulation with the production router and schedulers. The verdict says
    how sure it is, and may be: don't disaggregate.
    """
    from cluster.cli.tune_run import TuneOptions, run
    from cluster.cli.tune_validate import typed_options
    from cluster.interruption import interruptible

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
        prefill_nodes=prefill_nodes,
        decode_nodes=decode_nodes,
        model=model,
        config=config,
        limit=limit,
        seed=seed,
        plot=plot,
        out=out,
        validate=typed_options(validate, configurations, rates, replay_time, records),
    )
    with interruptible():
        tuned = run(options)
    emit(tuned.as_json(), output, lambda: _print(tuned, top))
    if tuned.result.verdict.winner is None:
        raise typer.Exit(1)


def _print(tuned: Tuned, top: int) -> None:
    print("\n".join(tuned.text()))
    print()
    print_table(*tuned.table(top))
    print()
    print(tuned.chart())
    if tuned.cases:
        print("\npredicted / measured")
        print_table(*tuned.cases_table())
        print("\n" + "\n".join(tuned.cases_text()))
