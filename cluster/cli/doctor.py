"""`crossdock doctor`: what would keep Crossdock from working here."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from cluster.cli.options import ConfigOption
from cluster.cli.output import Output, OutputOption, emit, print_table


def doctor(
    config: ConfigOption = None,
    model: Annotated[str | None, typer.Option(help="Check this model folder too.")] = None,
    grpc_port: int = 50051,
    http_port: int = 8000,
    admin_port: int = 50052,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check Python, packages, shadowed modules, cores, memory, kernels, model and ports.

    Changes nothing. What the compiled kernels gain is measured, on one core; a config says for
    which device and dtype, and which model is checked."""
    from cluster.doctor import run_checks

    ports = {"--grpc-port": grpc_port, "--http-port": http_port, "--admin-port": admin_port}
    checks = run_checks(model, ports, config)
    emit(
        [dataclasses.asdict(check) for check in checks],
        output,
        lambda: print_table(
            ["check", "status", "detail"], [(c.name, c.status, c.detail) for c in checks]
        ),
    )
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)
