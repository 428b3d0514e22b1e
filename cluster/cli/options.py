"""Options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from core.errors import InvalidField

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-f", help="YAML file; flags win over it.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model folder, or name of an imported one; else the demo model.")
]
ServedModelNameOption = Annotated[str | None, typer.Option(help="Name that clients use.")]
DTypeOption = Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")]
MaxModelLenOption = Annotated[int | None, typer.Option(help="Longest sequence in tokens.")]
PrefillOption = Annotated[
    int | None, typer.Option(help="Prefill workers; 0: decode workers prefill too.")
]
DecodeOption = Annotated[int | None, typer.Option(help="Decode workers.")]
PrefillTPOption = Annotated[
    int | None,
    typer.Option("--prefill-tp", help="Ranks that share each layer of a prefill worker."),
]
PrefillPPOption = Annotated[
    int | None,
    typer.Option("--prefill-pp", help="Stages that share the layers of a prefill worker."),
]
DecodeTPOption = Annotated[
    int | None,
    typer.Option("--decode-tp", help="Ranks that share each layer of a decode worker."),
]
DecodePPOption = Annotated[
    int | None,
    typer.Option("--decode-pp", help="Stages that share the layers of a decode worker."),
]
HostOption = Annotated[str, typer.Option(help="Address to serve on.")]
PortOption = Annotated[int, typer.Option(help="0: any free one.")]
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/]+):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65535


def check_place(place: str | None) -> str | None:
    """What was given, if it is host:port; raises ``BadParameter``. A callback of options."""
    found = None if place is None else _HOST_AND_PORT.fullmatch(place)
    if place is not None and (found is None or not 0 < int(found["port"]) <= _MAX_PORT):
        raise typer.BadParameter(f"{place!r} is not HOST:PORT, such as 127.0.0.1:50052")
    return place


def check_ray_address(address: str | None) -> str | None:
    """The same, where Ray's own words may stand instead."""
    if address is None or address == "auto":
        return address
    try:
        check_place(address.removeprefix("ray://"))
    except typer.BadParameter:
        fix = "must be HOST:PORT, such as 10.0.0.1:6379, or auto on a node of the cluster"
        raise typer.BadParameter(f"{address!r}: {fix}") from None
    return address


RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        callback=check_ray_address,
        help="Join this Ray cluster instead of starting one; auto: that of this node.",
    ),
]
ApiKeyOption = Annotated[
    str | None, typer.Option(envvar="CROSSDOCK_API_KEY", help="Where the cluster asks for one.")
]
# A limit that never comes is none: also keeps "inf" and "nan" out.
MAX_DRAIN_S = 86_400.0


def _check_drain(seconds: float) -> float:
    if not 0.0 <= seconds <= MAX_DRAIN_S:
        raise typer.BadParameter(f"must be between 0 and {MAX_DRAIN_S:g} seconds")
    return seconds


DrainOption = Annotated[
    float,
    typer.Option(callback=_check_drain, help="Seconds that running requests get at the end."),
]

PatienceOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=MAX_DRAIN_S,
        help="Seconds to wait for room on the Ray cluster, whose nodes may be on their way.",
    ),
]


def refuse_given(options: Mapping[str, object], fix: str) -> None:
    """Raises ``InvalidField`` for the first option that is not None: none is ignored in silence."""
    for option, value in options.items():
        if value is not None:
            raise InvalidField(option, str(value) if isinstance(value, Path) else value, fix)


DEFAULT_HOST = "127.0.0.1"
DEFAULT_GRPC_PORT = 50051
DEFAULT_HTTP_PORT = 8000
DEFAULT_ADMIN_PORT = 50052
DEFAULT_REGISTRY_PORT = 50053
DEFAULT_DRAIN_S = 30.0

ClusterNameOption = Annotated[
    str | None, typer.Option("--name", help="Which cluster, if `up` started several.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        callback=check_place,
        help="Else: the cluster that `up` started, or the default port of `serve`.",
    ),
]


def admin_address(given: str | None, name: str | None) -> str:
    """Where the operators' door is (host:port)."""
    from cluster.running import find_address

    return given or find_address("admin", name, f"{DEFAULT_HOST}:{DEFAULT_ADMIN_PORT}")


def http_url(name: str | None) -> str:
    """Of the cluster that `up` started, or of `serve` at its default port."""
    from cluster.cli.identity import door_tls
    from cluster.running import find_address

    address = find_address("http", name, f"{DEFAULT_HOST}:{DEFAULT_HTTP_PORT}")
    return f"{'http' if door_tls(address) is None else 'https'}://{address}"
