"""`crossdock status`: what the cluster looks like now."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli.output import Output, OutputOption, emit, plain, print_table
from core.errors import Unavailable

_TIMEOUT_S = 30.0


def status(
    address: Annotated[str, typer.Option(help="Admin address of `serve`.")] = "127.0.0.1:50052",
    validate: Annotated[
        bool, typer.Option("--validate", help="Let every worker check its invariants.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Workers, their load and cache, and how many KV bytes moved between them and how."""
    found = plain(fetch_status(address, validate))
    emit(found, output, lambda: _print(found))
    if any(worker["state"] == "unreachable" for worker in found["workers"]):
        raise typer.Exit(1)


def fetch_status(address: str, validate: bool = False) -> Any:
    """The ``ClusterStatus`` of the cluster at ``address``. Raises ``Unavailable``."""
    import grpc

    from crossdock.v1 import admin_pb2, admin_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.ClusterAdminStub(channel)
        try:
            request = admin_pb2.GetStatusRequest(validate=validate)
            return stub.GetStatus(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise Unavailable(
                f"no status from {address} ({error.code().name}): is `crossdock serve` running?",
                reason="NO_ANSWER",
            ) from None


def _print(found: dict[str, Any]) -> None:
    print(f"model {found['model']}  grpc {found['grpc_address']}  http {found['http_address']}")
    ratio = f"{found['prefill_wanted']}P:{found['decode_wanted']}D"
    print(f"pools {ratio}  restarts {found['restarts']}\n")
    print_table(
        ["worker", "state", "endpoint", "cores", "run", "wait", "free", "cached", "leased",
         "prefilled", "decoded", "preempted"],
        [_worker_row(worker) for worker in found["workers"]],
    )  # fmt: skip
    edges = [
        (
            edge["peer"],
            worker["worker"],
            edge["transport"],
            edge["blocks"],
            _size(edge["bytes"]),
            edge["detail"],
        )
        for worker in found["workers"]
        for edge in worker["stats"]["edges"]
    ]
    if edges:
        print()
        print_table(["from", "to", "transport", "blocks", "KV bytes", "why not faster"], edges)


def _worker_row(worker: dict[str, Any]) -> list[object]:
    stats = worker["stats"]
    state = f"{worker['state']} ({worker['detail']})" if worker["detail"] else worker["state"]
    head = [worker["worker"], state, worker["endpoint"]]
    if worker["state"] != "ready":
        return head + ["–"] * 9
    return [
        *head,
        ",".join(str(core) for core in stats["cores"]) or "any",
        stats["load"]["running"],
        stats["load"]["waiting"],
        f"{stats['free_blocks']}/{stats['total_blocks']}",
        stats["cached_blocks"],
        stats["leased_blocks"],
        stats["prefill_tokens_computed"],
        stats["decode_tokens"],
        stats["preemptions"],
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} B"
