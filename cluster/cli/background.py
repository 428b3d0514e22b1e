"""`crossdock up` and `crossdock down`: a whole cluster in the background."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from cluster.cli.options import (
    DEFAULT_ADMIN_PORT,
    DEFAULT_DRAIN_S,
    DEFAULT_GRPC_PORT,
    DEFAULT_HOST,
    DEFAULT_HTTP_PORT,
    ConfigOption,
    DecodeOption,
    DecodePPOption,
    DecodeTPOption,
    DrainOption,
    DTypeOption,
    HostOption,
    MaxModelLenOption,
    ModelOption,
    PatienceOption,
    PortOption,
    PrefillOption,
    PrefillPPOption,
    PrefillTPOption,
    RayAddressOption,
    ServedModelNameOption,
)
from cluster.cli.output import Output, OutputOption, emit
from cluster.progress import StderrProgress
from cluster.running import DEFAULT_NAME, RunningCluster

NameOption = Annotated[str, typer.Option("--name", help="Several clusters may run side by side.")]

_OWN_OPTIONS = ("name", "output")


def up(
    context: typer.Context,
    config: ConfigOption = None,
    model: ModelOption = None,
    served_model_name: ServedModelNameOption = None,
    dtype: DTypeOption = None,
    max_model_len: MaxModelLenOption = None,
    prefill: PrefillOption = None,
    decode: DecodeOption = None,
    prefill_tp: PrefillTPOption = None,
    prefill_pp: PrefillPPOption = None,
    decode_tp: DecodeTPOption = None,
    decode_pp: DecodePPOption = None,
    host: HostOption = DEFAULT_HOST,
    grpc_port: PortOption = DEFAULT_GRPC_PORT,
    http_port: PortOption = DEFAULT_HTTP_PORT,
    admin_port: PortOption = DEFAULT_ADMIN_PORT,
    ray_address: RayAddressOption = None,
    patience: PatienceOption = 0.0,
    drain_s: DrainOption = DEFAULT_DRAIN_S,
    name: NameOption = DEFAULT_NAME,
    output: OutputOption = Output.TABLE,
) -> None:
    """As `serve`, but in the background: returns when the cluster is ready. `down` ends it.

    The other commands find it by themselves. If it can't start, nothing of it is left, and what its
    log says is told.
    """
    from cluster.detached import StartFailed, start_detached

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    StderrProgress().step(f"starting the cluster {name}")
    try:
        cluster = start_detached(name, _serve_arguments(context))
    except StartFailed as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    emit(_told(cluster), output, lambda: print(f"ready grpc={cluster.grpc} http={cluster.http}"))


def down(name: NameOption = DEFAULT_NAME, output: OutputOption = Output.TABLE) -> None:
    """End the cluster that `up` started. It finishes its requests first, within its --drain-s."""
    from cluster.detached import end_detached

    StderrProgress().step(f"ending the cluster {name}")
    cluster = end_detached(name)
    emit(_told(cluster), output, lambda: print(f"the cluster {name} has ended"))


def _serve_arguments(context: typer.Context) -> list[str]:
    """What was given to `up`, as `serve` takes it."""
    arguments: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is not None and parameter.name not in _OWN_OPTIONS:
            arguments += [parameter.opts[0], str(value)]
    return arguments


def _told(cluster: RunningCluster) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "pid": cluster.pid,
        "grpc": cluster.grpc,
        "http": cluster.http,
        "admin": cluster.admin,
        "log": cluster.log,
    }


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
