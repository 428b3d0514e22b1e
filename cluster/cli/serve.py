"""`crossdock serve`: a whole cluster in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file; flags win over it.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder, or name of an imported one; else the demo model."),
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name that clients use.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    prefill: Annotated[
        int | None, typer.Option(help="Prefill workers; 0: decode workers prefill too.")
    ] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0: any free one.")] = 50051,
    http_port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    admin_port: Annotated[int, typer.Option(help="0: any free one.")] = 50052,
    ray_address: Annotated[
        str | None, typer.Option(help="Join this Ray cluster instead of starting one.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running requests get at the end.")
    ] = 30.0,
) -> None:
    """Serve until Ctrl-C. Prints `ready grpc=HOST:PORT http=HOST:PORT` when prompts are welcome."""
    # Read when gRPC loads: we fork only to start other programs, which needs no care of gRPC's.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from cluster.launch import ServeOptions, run_serve
    from cluster.progress import StderrProgress
    from cluster.spec_file import load_spec

    overrides: dict[str, object] = {
        "model": model,
        "served_model_name": served_model_name,
        "max_model_len": max_model_len,
        "engine.dtype": dtype,
        "pools.prefill.replicas": prefill,
        "pools.decode.replicas": decode,
    }
    options = ServeOptions(
        spec=load_spec(config, overrides),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        admin_port=admin_port,
        ray_address=ray_address,
        drain_s=drain_s,
    )
    run_serve(options, StderrProgress())
