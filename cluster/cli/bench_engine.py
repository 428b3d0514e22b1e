"""`crossdock bench engine`: the engine alone, beside what the machine could do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import ModelOption
from cluster.cli.output import Output, OutputOption, emit, print_table

if TYPE_CHECKING:
    from cluster.engine_bench.results import EngineBenchResult


def engine(
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Of --model take no more than its config.json.")
    ] = False,
    threads: Annotated[
        str | None, typer.Option(help="One process for each: 1,2. By default 1 and all cores.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, runs and steps.")] = False,
    prompts: Annotated[
        str | None, typer.Option(help="Tokens of prompts, by default 128,512,1024,1900.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Sequences of decode steps, by default 1,4,8,16,32.")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(help="Their tokens before the first step, by default 128,1024.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="URL of an OpenAI server to measure over HTTP; may be repeated."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="CROSSDOCK_BENCH_API_KEY", help="Bearer token for --against."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Measure prefill and decode steps of the engine on a CPU or a GPU, as share of a roofline.

    The floor is the larger of the bytes that must be read (weights, and in decode KV) over the
    bandwidth (of reads; on a GPU of copies), and of the FLOPs of all matrix products and of
    attention over the rate of matrix products; both rates are measured in the same process.
    Share = floor / median.
    """
    from cluster.engine_bench.report import as_json
    from cluster.engine_bench.run import EngineBenchOptions, run
    from cluster.progress import StderrProgress

    options = EngineBenchOptions(
        model=model,
        dtype=dtype,
        device=device,
        random_weights=random_weights,
        threads=threads,
        quick=quick,
        prompts=prompts,
        batches=batches,
        contexts=contexts,
        against=tuple(against or ()),
        api_key=api_key,
    )
    result = run(options, StderrProgress())
    emit(as_json(result), output, lambda: _print(result))


def _print(result: EngineBenchResult) -> None:
    from cluster.engine_bench.report import (
        decode_table,
        headings,
        notes,
        overhead_lines,
        prefill_table,
    )

    print("\n".join(headings(result)))
    print("\nprefill")
    print_table(*prefill_table(result))
    print("\ndecode")
    print_table(*decode_table(result))
    if outside := overhead_lines(result):
        print("\noutside of the model")
        print("\n".join(outside))
    for note in notes(result):
        print(f"note: {note}")
