"""`crossdock bench`: measure a server under the load of independent users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.bench_engine import engine
from cluster.cli.options import ClusterNameOption, http_url
from cluster.cli.output import Output, OutputOption, emit, print_table
from core.errors import InvalidField

if TYPE_CHECKING:
    from tuner.load.report import Report

# A group: other kinds of benchmark are commands of their own below it.
app = typer.Typer(invoke_without_command=True)
app.command("engine")(engine)


@app.callback()
def bench(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Option(
            help="http(s)://HOST:PORT of an OpenAI server, or grpc(s)://HOST:PORT. Else: the "
            "cluster that `up` started, or the default port of `serve`."
        ),
    ] = None,
    name: ClusterNameOption = None,
    preset: Annotated[str | None, typer.Option(help="mixed (default), short or long.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second, by default 1.")] = None,
    arrivals: Annotated[str | None, typer.Option(help="poisson (default) or constant.")] = None,
    duration: Annotated[
        str | None, typer.Option(help="For how long requests arrive: 90s, 3m; else the preset's.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One run for each: 0,1,2; else the preset's.")
    ] = None,
    input_tokens: Annotated[
        str | None, typer.Option(help="Tokens of a prompt, A-B; else the preset's.")
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(help="Tokens of an answer, A-B; else the preset's.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay this trace: Mooncake JSONL, Azure or BurstGPT CSV.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Replay a trace this many times as fast.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many of a trace.")] = None,
    slo_ttft: Annotated[str, typer.Option(help="Limit for goodput: 1s, 500ms.")] = "1s",
    slo_tpot: Annotated[str, typer.Option(help="Limit for goodput: 50ms, 0.05.")] = "50ms",
    model: Annotated[str | None, typer.Option(help="Else the first that is served.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder with tokenizer.json; else the imported model of that name."),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="completions (default) or chat.")] = None,
    prompt_format: Annotated[
        str | None, typer.Option(help="ids or text; chat takes text only.")
    ] = None,
    prompt_seed: Annotated[
        int | None,
        typer.Option(min=0, help="Same prompts again; else new ones that no cache has seen."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for answers of exactly the planned length.")
    ] = True,
    api_key: Annotated[
        str | None, typer.Option(envvar="CROSSDOCK_BENCH_API_KEY", help="Sent as bearer token.")
    ] = None,
    request_timeout: Annotated[str, typer.Option(help="For one request.")] = "600s",
    drain: Annotated[
        str, typer.Option(help="How long to wait at the end for answers on their way.")
    ] = "120s",
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Hold requests back: no open loop any more.")
    ] = None,
    by_ticket: Annotated[
        bool,
        typer.Option("--by-ticket", help="grpc: read tokens from the decode workers themselves."),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write a record of every request (JSON lines).")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send requests when they are due, answered or not, and report TTFT, TPOT, ITL, E2E, goodput.

    Ctrl-C ends the run and prints what was measured so far.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from cluster.cli.bench_plans import LoadOptions
    from cluster.cli.bench_run import BenchOptions, run

    load = LoadOptions(
        preset=preset,
        rate=rate,
        arrivals=arrivals,
        duration=duration,
        seeds=seeds,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        trace=trace,
        speed=speed,
        limit=limit,
    )
    options = BenchOptions(
        load=load,
        target=target or http_url(name),
        slo_ttft=slo_ttft,
        slo_tpot=slo_tpot,
        model=model,
        tokenizer=tokenizer,
        endpoint=endpoint,
        prompt_format=prompt_format,
        prompt_seed=prompt_seed,
        ignore_eos=ignore_eos,
        api_key=api_key,
        request_timeout=request_timeout,
        drain=drain,
        max_concurrency=max_concurrency,
        by_ticket=by_ticket,
        save=save,
    )
    report = run(options)
    emit(report.as_json(), output, lambda: _print(report))
    if not report.total.completed:
        raise typer.Exit(1)


def _refuse_options_before(context: typer.Context) -> None:
    """An option of this command that stands before another one's name would do nothing."""
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            fix = f"does nothing before {context.invoked_subcommand}; leave it out"
            shown = "(hidden)" if name == "api_key" else value
            raise InvalidField(f"--{name.replace('_', '-')}", shown, fix)


def _print(report: Report) -> None:
    settings = report.settings
    print(f"{report.model} at {settings.target} ({settings.protocol}, {settings.prompt_format})")
    print(f"{settings.arrivals}; {settings.workload}")
    print(
        f"goodput: TTFT ≤ {settings.slo.ttft_s:g} s, TPOT ≤ {settings.slo.tpot_s * 1000:g} ms; "
        f"content seed {settings.content_seed}\n"
    )
    print_table(*report.table())
    if errors := report.errors():
        print()
        print_table(("error", "count", "first one"), errors)
    for warning in report.warnings:
        print(f"\nwarning: {warning}")
