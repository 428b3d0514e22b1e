"""`crossdock scale`, `drain`, `drain-node` and `flip`: change a cluster while it serves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.admin_call import call_admin, wait_gone, wait_settled
from cluster.cli.options import AddressOption, ClusterNameOption, admin_address
from cluster.cli.output import Output, OutputOption, emit
from cluster.progress import StderrProgress
from core.errors import PreconditionFailed

_MAX_REPLICAS = 1024
_MAX_DRAIN_S = 86_400.0

WorkerArgument = Annotated[
    str, typer.Argument(metavar="WORKER", help="Name as in `status`, e.g. decode-0.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return when it is done, or when it is accepted.")
]
DrainLimitOption = Annotated[
    float, typer.Option(min=0.0, max=_MAX_DRAIN_S, help="Seconds to finish what it has.")
]
TimeoutOption = Annotated[float, typer.Option(min=0.0, help="Seconds to wait.")]


def scale(
    prefill: Annotated[
        int | None, typer.Option(min=0, max=_MAX_REPLICAS, help="Prefill workers.")
    ] = None,
    decode: Annotated[
        int | None, typer.Option(min=1, max=_MAX_REPLICAS, help="Decode workers.")
    ] = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 900.0,
    address: AddressOption = None,
    name: ClusterNameOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change how many workers there are; what is not given stays.

    Workers that are too many finish what they have: first those that are not ready, then the least
    loaded, then the youngest. With `--prefill 0`, decode workers prefill too.
    """
    from crossdock.v1 import admin_pb2

    if prefill is None and decode is None:
        raise typer.BadParameter("give --prefill, --decode or both")
    request = admin_pb2.ScaleRequest(prefill=prefill, decode=decode)
    _change("Scale", request, admin_address(address, name), wait, timeout, output)


def drain(
    worker: WorkerArgument,
    replace: Annotated[
        bool,
        typer.Option("--replace/--no-replace", help="Start another first, or want one less."),
    ] = True,
    limit: DrainLimitOption = 600.0,
    wait: WaitOption = True,
    timeout: TimeoutOption = 900.0,
    address: AddressOption = None,
    name: ClusterNameOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Retire a worker: it takes nothing new, finishes its streams and handoffs, and ends.

    Another one is started first and takes over, so that capacity stays; `--no-replace` lowers the
    wanted number by one instead. After `--limit` requests without a token yet are answered by
    other workers, and streams that still run are cut (ABORTED). The last decode worker is drained
    only with a replacement.
    """
    from crossdock.v1 import admin_pb2

    request = admin_pb2.DrainRequest(worker=worker, no_replace=not replace, limit_s=limit)
    _change("Drain", request, admin_address(address, name), wait, timeout, output)


def drain_node(
    node: Annotated[str, typer.Argument(metavar="ADDRESS", help="IP address of the node.")],
    limit: DrainLimitOption = 600.0,
    wait: WaitOption = True,
    timeout: TimeoutOption = 900.0,
    address: AddressOption = None,
    name: ClusterNameOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Empty a node of Ray that goes away: its workers finish what they have, and end.

    They take nothing new from now on, whether others can take over or not; replacements are started
    as soon as there is room on other nodes.
    """
    from crossdock.v1 import admin_pb2

    door = admin_address(address, name)
    request = admin_pb2.DrainNodeRequest(address=node, limit_s=limit)
    workers = list(call_admin(door, "DrainNode", request).workers)
    if wait:
        wait_gone(door, workers, timeout, StderrProgress())
    said = f"{', '.join(workers)} {'have ended' if wait else 'are leaving'}"
    result = {"node": node, "workers": workers, "ended": wait}
    emit(result, output, lambda: print(said if workers else f"no worker is on {node}"))


def flip(
    worker: WorkerArgument,
    wait: WaitOption = True,
    timeout: TimeoutOption = 900.0,
    address: AddressOption = None,
    name: ClusterNameOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a worker's role: drain it, then start one of the other role in its place.

    The wanted numbers follow. Refused if no decode worker would be left.
    """
    from crossdock.v1 import admin_pb2

    request = admin_pb2.FlipRequest(worker=worker)
    _change("Flip", request, admin_address(address, name), wait, timeout, output)


def _change(
    method: str, request: Any, address: str, wait: bool, timeout_s: float, output: Output
) -> None:
    wanted = call_admin(address, method, request)
    if wait:
        _check_still_wanted(wanted, wait_settled(address, timeout_s, StderrProgress()))
    result = {"prefill": wanted.prefill, "decode": wanted.decode, "settled": wait}
    said = "now" if wait else "wanted"
    emit(result, output, lambda: print(f"{said} {wanted.prefill}P:{wanted.decode}D"))


def _check_still_wanted(wanted: Any, status: Any) -> None:
    """Never tells of numbers that another change has overtaken."""
    if (status.prefill_wanted, status.decode_wanted) == (wanted.prefill, wanted.decode):
        return
    raise PreconditionFailed(
        f"another change came in between: {status.prefill_wanted}P:{status.decode_wanted}D serve "
        f"now, and this one wanted {wanted.prefill}P:{wanted.decode}D",
        reason="SUPERSEDED",
    )
