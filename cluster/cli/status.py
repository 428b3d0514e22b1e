"""`crossdock status`: what the cluster looks like now."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from cluster.cli.admin_call import fetch_status
from cluster.cli.options import (
    AddressOption,
    ClusterNameOption,
    admin_address,
    check_place,
    refuse_given,
)
from cluster.cli.output import Output, OutputOption, emit, plain, print_table
from cluster.cli.watch import DEFAULT_INTERVAL_S, Watched, watch


def status(
    address: AddressOption = None,
    name: ClusterNameOption = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Let every worker check its invariants.")
    ] = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Live, with rates and latencies, until interrupted.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.2,
            max=3600,
            show_default=f"{DEFAULT_INTERVAL_S:g}",
            help="Seconds between two looks of --watch.",
        ),
    ] = None,
    refreshes: Annotated[
        int | None, typer.Option(min=1, help="End --watch after so many looks.")
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=check_place,
            help="HTTP address of the router that --watch asks.",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Workers, their load and cache, and how many KV bytes moved between them and how.

    Of a worker of several ranks the cores of each are shown, "?" for one that does not answer, and
    edges are between ranks: prefill-0/2 is rank 2 of prefill-0. --watch shows rates and latencies
    of the last half minute instead (docs/METRICS.md); as JSON a line each time.
    """
    at = admin_address(address, name)
    if watching:
        refuse_given({"--validate": validate or None}, "is asked once; leave out --watch")
        with contextlib.suppress(KeyboardInterrupt):
            watch(Watched(at, router, interval or DEFAULT_INTERVAL_S), refreshes, output)
        return
    of_watch = {"--interval": interval, "--refreshes": refreshes, "--router": router}
    refuse_given(of_watch, "belongs to --watch; give that, too")
    found = plain(fetch_status(at, validate))
    emit(found, output, lambda: _print(found))
    if any(worker["state"] == "unreachable" for worker in found["workers"]):
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    print("  ".join([f"model {found['model']}", *_doors(found)]))
    ratio = f"{found['prefill_wanted']}P:{found['decode_wanted']}D"
    settled = "" if found["settled"] else "  (changing)"
    used = [_percent(found[f"{pool}_utilization"]) for pool in ("prefill", "decode")]
    print(f"pools {ratio}{settled}  used {' : '.join(used)}  restarts {found['restarts']}\n")
    print_table(
        ["worker", "tp×pp", "state", "endpoint", "cores", "kernels", "run", "wait", "free",
         "cached", "leased", "prefilled", "decoded", "preempted"],
        [_worker_row(worker) for worker in found["workers"]],
    )  # fmt: skip
    _print_routers(found["routers"])
    for worker in found["workers"]:
        if worker["stats"]["routers_without_events"]:
            print(f"\n{_lacking_events(worker)}")
    edges = [(edge, worker) for worker in found["workers"] for edge in worker["stats"]["edges"]]
    split = {worker["worker"] for worker in found["workers"] if _num_ranks(worker) > 1}
    # A peer may be gone.
    split |= {edge["peer"] for edge, _ in edges if edge["source_rank"]}
    if edges:
        print()
        print_table(
            ["from", "to", "transport", "blocks", "KV bytes", "why not faster"],
            [_edge_row(edge, worker["worker"], split) for edge, worker in edges],
        )


def _print_routers(routers: list[dict[str, Any]]) -> None:
    """Of one that shares nothing there is nothing to say."""
    alone = [router for router in routers if not router["store"]]
    if len(routers) == len(alone) == 1 or not routers:
        return
    print()
    print_table(
        ["router", "grpc", "shares by", "with", "degraded"],
        [_router_row(router) for router in routers],
    )
    if alone:
        print(
            f"\n{len(alone)} of {len(routers)} routers share nothing: each counts limits and "
            "request ids by itself; give all of them the same `store`"
        )


def _doors(found: dict[str, Any]) -> list[str]:
    """None where routers are processes of their own."""
    http = "https" if found["doors_tls"] else "http"
    places = {"grpc": found["grpc_address"], http: found["http_address"]}
    return [f"{door} {place}" for door, place in places.items() if place]


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _worker_row(worker: dict[str, Any]) -> list[object]:
    stats = worker["stats"]
    state = f"{worker['state']} ({worker['detail']})" if worker["detail"] else worker["state"]
    shape = f"{worker['tensor_parallel_size']}×{worker['pipeline_parallel_size']}"
    head = [worker["worker"], shape, state, worker["endpoint"]]
    if worker["state"] not in ("ready", "draining"):
        return head + ["–"] * 10
    return [
        *head,
        _cores_of_ranks(worker),
        _kernels(stats["ranks"]),
        stats["load"]["running"],
        stats["load"]["waiting"],
        f"{stats['free_blocks']}/{stats['total_blocks']}",
        stats["cached_blocks"],
        stats["leased_blocks"],
        stats["prefill_tokens_computed"],
        stats["decode_tokens"],
        stats["preemptions"],
    ]


def _router_row(router: dict[str, Any]) -> list[object]:
    head = [router["router_id"], router["grpc_address"]]
    if not router["store"]:
        return [*head, "nothing", "–", ""]
    head.append(router["store"] + " (in the clear!)" * router["store_in_clear"])
    return [*head, f"{router['peers']} others", router["degraded"]]


def _edge_row(edge: dict[str, Any], worker: str, split: set[str]) -> list[object]:
    """``split``: workers of several ranks, whose edges are between ranks."""
    source, destination = edge["source_rank"], edge["destination_rank"]
    return [
        f"{edge['peer']}/{source}" if edge["peer"] in split else edge["peer"],
        f"{worker}/{destination}" if worker in split else worker,
        edge["transport"],
        edge["blocks"],
        _size(edge["bytes"]),
        edge["detail"],
    ]


def _lacking_events(worker: dict[str, Any]) -> str:
    stats = worker["stats"]
    without = f"{stats['routers_without_events']} of {stats['routers']} routers"
    return f"{worker['worker']}: {without} get no cache events and go by what they have sent to it"


def _num_ranks(worker: dict[str, Any]) -> int:
    return int(worker["tensor_parallel_size"] * worker["pipeline_parallel_size"])


def _cores_of_ranks(worker: dict[str, Any]) -> str:
    told = {stats["rank"]: _cores(stats) for stats in worker["stats"]["ranks"]}
    return "|".join(told.get(rank, "?") for rank in range(_num_ranks(worker)))


def _cores(stats: dict[str, Any]) -> str:
    return ",".join(str(core) for core in stats["cores"]) or "any"


def _kernels(ranks: list[dict[str, Any]]) -> str:
    """Of all ranks; why is told as JSON."""
    return "|".join(sorted({stats["kernels"].partition(" ")[0] for stats in ranks}))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} B"
