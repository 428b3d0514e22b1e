"""`crossdock profile`: how long this machine takes for the steps of a model."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.options import ConfigOption, ModelOption, refuse_given
from cluster.cli.output import Output, OutputOption, emit, print_table
from core.errors import InvalidField

if TYPE_CHECKING:
    from cluster.profiling.assemble import ProfileResult
    from tuner.profile.points import Effort


def profile(
    out: Annotated[Path, typer.Option(help="Where to write the profile (JSON).")],
    config: ConfigOption = None,
    model: ModelOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points, fewer runs.")] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="More of both; long.")] = False,
    from_spec: Annotated[
        Path | None,
        typer.Option(help="Measure nothing: a roofline of the hardware in this YAML file."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Measure engine, KV transfers and router on this machine, fit how long steps take.

    `simulate` and `tune` predict from it; they also find the newest one without being told.
    Interrupted, it goes on where it stopped when it is run again with the same --out.
    """
    effort = _effort(quick, thorough)
    if from_spec is not None:
        measuring = {
            "--config": config,
            "--model": model,
            "--quick": quick or None,
            "--thorough": thorough or None,
        }
        refuse_given(measuring, "belongs to measuring; leave it out beside --from-spec")
        _from_spec(from_spec, out, output)
        return
    from cluster.interruption import interruptible
    from cluster.profiling.run import measure_profile
    from cluster.profiling.subject import choose_subject
    from cluster.progress import StderrProgress
    from cluster.spec_file import load_spec

    progress = StderrProgress()
    spec = load_spec(config, {"model": model})
    subject = choose_subject(spec, effort, progress)
    with interruptible("interrupted; what was measured is kept: run the same command to go on"):
        result = measure_profile(subject, out, progress)
    _report(result, output)


def _from_spec(spec: Path, out: Path, output: Output) -> None:
    from tuner.profile.profile_file import check_profile_path, write_profile
    from tuner.profile.report import as_json, engine_table, headings
    from tuner.profile.spec_file import profile_from_spec

    check_profile_path(out)
    profile = profile_from_spec(spec, datetime.now(UTC).isoformat(timespec="seconds"))
    write_profile(profile, out)

    def show() -> None:
        print("\n".join(headings(profile)))
        print_table(*engine_table(profile))

    emit(as_json(profile, ()), output, show)


def _effort(quick: bool, thorough: bool) -> Effort:
    from tuner.profile.points import Effort

    if quick and thorough:
        raise InvalidField("--quick", True, "means the opposite of --thorough; give one of them")
    return Effort.QUICK if quick else Effort.THOROUGH if thorough else Effort.NORMAL


def _report(result: ProfileResult, output: Output) -> None:
    from tuner.profile.report import as_json

    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    data = as_json(result.profile, result.warnings)
    emit(data, output, lambda: _print(result))


def _print(result: ProfileResult) -> None:
    from tuner.profile.report import engine_table, headings, transfer_table

    print("\n".join(headings(result.profile)))
    print("\nengines: errors on points that a fit had not seen")
    print_table(*engine_table(result.profile))
    print("\ntransfers")
    print_table(*transfer_table(result.profile))
    print("\npoints that fit worst (measured ÷ fitted)")
    for fitted in result.fits:
        worst = "; ".join(f"{name}: {ratio:.2f}" for name, ratio in fitted.worst)
        print(f"{fitted.name}, {fitted.points} points: {worst}")
