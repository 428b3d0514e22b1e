"""`crossdock serve`: a whole cluster in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

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


def serve(
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
    name: Annotated[
        str | None, typer.Option(help="Let other commands find it, as `up` does.")
    ] = None,
    log: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Serve until Ctrl-C. Prints `ready grpc=HOST:PORT http=HOST:PORT` when prompts are welcome."""
    # Read when gRPC loads: we fork only to start other programs, which needs no care of gRPC's.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from cluster.launch import run_serve
    from cluster.progress import StderrProgress
    from cluster.running import claim_name
    from cluster.serving_cluster import ServeOptions
    from cluster.spec_file import load_spec
    from cluster.tls_check import files_for_commands
    from core.errors import InvalidField

    if patience and ray_address is None:
        fix = "give --ray-address, or leave it out: a Ray of our own has no other nodes"
        raise InvalidField("--patience", f"{patience:g}", fix)
    overrides: dict[str, object] = {
        "model": model,
        "served_model_name": served_model_name,
        "max_model_len": max_model_len,
        "engine.dtype": dtype,
        "pools.prefill.replicas": prefill,
        "pools.decode.replicas": decode,
        "pools.prefill.tensor_parallel_size": prefill_tp,
        "pools.prefill.pipeline_parallel_size": prefill_pp,
        "pools.decode.tensor_parallel_size": decode_tp,
        "pools.decode.pipeline_parallel_size": decode_pp,
    }
    options = ServeOptions(
        spec=load_spec(config, overrides),
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        admin_port=admin_port,
        ray_address=ray_address,
        patience_s=patience,
        drain_s=drain_s,
    )
    if name is None:
        run_serve(options, StderrProgress())
        return
    claim = claim_name(name, drain_s, log, files_for_commands(options.spec))
    try:
        run_serve(options, StderrProgress(), claim.tell_ready)
    finally:
        claim.release()
