"""`crossdock controller` and `crossdock router`: a cluster's parts as processes of their own.

What `serve` runs together, for places where something else keeps processes alive, such as
Kubernetes (`helm/crossdock`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import (
    DEFAULT_ADMIN_PORT,
    DEFAULT_DRAIN_S,
    DEFAULT_GRPC_PORT,
    DEFAULT_HOST,
    DEFAULT_HTTP_PORT,
    DEFAULT_REGISTRY_PORT,
    MAX_DRAIN_S,
    DrainOption,
    HostOption,
    PortOption,
    check_place,
)

RequiredConfigOption = Annotated[Path, typer.Option(help="YAML file that describes the cluster.")]


def controller(
    config: RequiredConfigOption,
    ray_head: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            callback=check_place,
            help="Head of the Ray cluster to run workers on.",
        ),
    ],
    host: HostOption = DEFAULT_HOST,
    registry_port: PortOption = DEFAULT_REGISTRY_PORT,
    admin_port: PortOption = DEFAULT_ADMIN_PORT,
    node_address: Annotated[
        str, typer.Option(help="IP address of this host in the Ray cluster; else Ray finds out.")
    ] = "",
    patience: Annotated[
        float,
        typer.Option(min=0.0, max=MAX_DRAIN_S, help="Seconds to wait for Ray's head and nodes."),
    ] = 1800.0,
    drain_s: DrainOption = DEFAULT_DRAIN_S,
) -> None:
    """Run a cluster's workers on Ray, for routers that are elsewhere.

    Joins Ray with a node of its own that offers no resources. Prints `ready registry=HOST:PORT
    admin=HOST:PORT` when all workers are ready. When the numbers of replicas in the config change,
    it scales; other changes take a restart.
    """
    # Read when gRPC loads: we fork only to start other programs, which needs no care of gRPC's.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from cluster.launch import run_serve
    from cluster.progress import StderrProgress
    from cluster.serving_cluster import RoutersElsewhere, ServeOptions
    from cluster.spec_file import load_spec

    options = ServeOptions(
        spec=load_spec(config, opens_doors=False),
        host=host,
        admin_port=admin_port,
        drain_s=drain_s,
        patience_s=patience,
        elsewhere=RoutersElsewhere(registry_port, ray_head, node_address, config),
    )
    run_serve(options, StderrProgress())


def router(
    config: RequiredConfigOption,
    registry: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            callback=check_place,
            help="Where a controller lists its workers.",
        ),
    ],
    host: HostOption = DEFAULT_HOST,
    grpc_port: PortOption = DEFAULT_GRPC_PORT,
    http_port: PortOption = DEFAULT_HTTP_PORT,
    drain_s: DrainOption = DEFAULT_DRAIN_S,
    tenants: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with tenants and auth instead of the config's, e.g. a Secret."
        ),
    ] = None,
) -> None:
    """Run one router of a cluster whose controller is elsewhere. Several may run side by side.

    Prints `ready grpc=HOST:PORT http=HOST:PORT` when it listens; `/ready` tells whether there are
    workers. The config is the controller's: model, KV pool and limits must be the same.
    """
    from cluster.progress import StderrProgress
    from cluster.router_settings import Doors
    from cluster.separate_router import locate_model_of_router, settings_of_router
    from cluster.spec_file import read_router_spec
    from router.main import run

    spec = read_router_spec(config, tenants)
    model = locate_model_of_router(spec, StderrProgress())
    doors = Doors(host, grpc_port, http_port, drain_s)
    sys.exit(run(settings_of_router(spec, model, registry, doors)))
