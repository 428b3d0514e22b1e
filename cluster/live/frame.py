"""What `crossdock status --watch` shows at one moment, as plain data. Pure.

From the status of the cluster and two scrapes of all its metrics; rates, means and percentiles are
those between the two. None: nothing happened that would say. Does not cover: how it looks
(``cluster.live.tables``).
"""

from __future__ import annotations

from typing import Any

from cluster.live.scrape import Interval
from cluster.metric_table import HOUR_PRICE, IMBALANCE, UTILIZATION
from core.metric_spec import MetricSpec
from core.phase_clock import Phase
from router.metrics import metric_table as router
from worker import metric_table as worker

Frame = dict[str, Any]


def make_frame(status: dict[str, Any], interval: Interval) -> Frame:
    """``status``: as `crossdock status --output json` has it."""
    return {
        "model": status["model"],
        "settled": status["settled"],
        "restarts": status["restarts"],
        "window_s": interval.after.at - interval.before.at,
        "pools": _pools(status, interval),
        "serving": _serving(interval),
        "latency": _latency(interval),
        "phases": _phases(interval),
        "workers": [_worker(told, interval) for told in status["workers"]],
        "edges": _edges(interval),
        "router": _router(interval),
        "tenants": _tenants(interval),
    }


def _pools(status: dict[str, Any], interval: Interval) -> Frame:
    pools = {
        pool: {
            "wanted": status[f"{pool}_wanted"],
            "ready": _ready(status, pool),
            "utilization": status[f"{pool}_utilization"],
        }
        for pool in ("prefill", "decode")
    }
    known = len(interval.values(UTILIZATION, "pool")) == len(pools)
    return {**pools, "imbalance": interval.now(IMBALANCE) if known else None}


def _ready(status: dict[str, Any], pool: str) -> int:
    prefill = [told["stats"]["role"] == "prefill" for told in status["workers"]]
    ready = [told["state"] == "ready" for told in status["workers"]]
    wanted = pool == "prefill"
    return sum(is_ready and role == wanted for is_ready, role in zip(ready, prefill, strict=True))


def _serving(interval: Interval) -> Frame:
    counted = interval.increase(router.SLO_REQUESTS)
    prompt = interval.increase(router.PROMPT_TOKENS)
    return {
        "requests_per_s": interval.rate(router.REQUESTS),
        "goodput_per_s": interval.rate(router.GOODPUT),
        "attainment": _share(interval.increase(router.GOODPUT), counted),
        "waiting": interval.now(router.WAITING),
        "streaming": interval.now(router.STREAMING),
        "prompt_tokens_per_s": interval.rate(router.PROMPT_TOKENS),
        "cached": _share(interval.increase(router.CACHED_TOKENS), prompt),
        "generated_tokens_per_s": interval.rate(router.GENERATED),
        "retries": interval.increase(router.RETRIES),
    }


def _latency(interval: Interval) -> Frame:
    shown = {"ttft": router.TTFT, "tpot": router.TPOT, "itl": router.ITL, "e2e": router.E2E}
    return {
        name: {f"p{round(100 * q)}_s": interval.quantile(q, spec) for q in (0.5, 0.9, 0.99)}
        for name, spec in shown.items()
    }


def _phases(interval: Interval) -> Frame:
    """Mean seconds by role and phase."""
    roles = dict.fromkeys(interval.values(worker.BUSY, "role"))
    return {
        role: {
            phase.value: interval.mean(worker.PHASES, role=role, phase=phase.value)
            for phase in Phase
        }
        for role in roles
    }


def _worker(told: dict[str, Any], interval: Interval) -> Frame:
    name = told["worker"]

    def now(spec: MetricSpec, **where: str) -> float:
        return interval.now(spec, worker=name, **where)

    def rate(spec: MetricSpec) -> float:
        return interval.rate(spec, worker=name)

    used = now(worker.BLOCKS, state="leased") + now(worker.BLOCKS, state="quarantined")
    return {
        "worker": name,
        "state": told["state"],
        "detail": told["detail"],
        "running": now(worker.RUNNING),
        "max_sequences": now(worker.MAX_SEQUENCES),
        "waiting": now(worker.WAITING),
        "kv_used": _share(used, now(worker.POOL_BLOCKS)),
        "orphan_blocks": now(worker.ORPHANS),
        "busy": rate(worker.BUSY),
        "mfu": _share(rate(worker.FLOPS), now(worker.PEAK_FLOPS)),
        "mbu": _share(rate(worker.BYTES), now(worker.PEAK_BANDWIDTH)),
        "prefill_tokens_per_s": rate(worker.COMPUTED),
        "decode_tokens_per_s": rate(worker.DECODED),
        "step_s": interval.mean(worker.STEP_TIME, worker=name),
    }


def _edges(interval: Interval) -> list[Frame]:
    return [_edge(dict(labels), interval) for labels in interval.label_sets(worker.EDGE_BYTES)]


def _edge(labels: dict[str, str], interval: Interval) -> Frame:
    copied = interval.increase(worker.EDGE_BYTES, **labels)
    return {
        "from": f"{labels['peer']}/{labels['source_rank']}",
        "to": f"{labels['worker']}/{labels['destination_rank']}",
        "transport": labels["transport"],
        "slow": bool(interval.now(worker.EDGE_SLOW, **labels)),
        "bytes_per_s": interval.rate(worker.EDGE_BYTES, **labels),
        "copying_bytes_per_s": _share(copied, interval.increase(worker.EDGE_TIME, **labels)),
        "resent_blocks": interval.increase(worker.EDGE_RESENT, **labels),
    }


def _router(interval: Interval) -> Frame:
    blocks = interval.increase(router.ROUTED_BLOCKS)
    return {
        **{
            f"{mode}_per_s": interval.rate(router.DECISIONS, mode=mode)
            for mode in ("handoff", "local", "direct")
        },
        **{
            f"{role}_overlap": _share(interval.increase(router.OVERLAP_BLOCKS, role=role), blocks)
            for role in ("prefill", "decode")
        },
        "decision_p99_s": interval.quantile(0.99, router.DECISION_TIME),
        "ttft_actual_over_predicted": interval.quantile(0.5, router.TTFT_RATIO),
        "tpot_actual_over_predicted": interval.quantile(0.5, router.TPOT_RATIO),
        "excluded_workers": interval.now(router.EXCLUDED),
        "index_blocks": interval.now(router.INDEX_BLOCKS),
        "kv_events_per_s": interval.rate(router.KV_EVENTS),
    }


def _tenants(interval: Interval) -> list[Frame]:
    costs = _costs_per_hour(interval)
    return [
        {
            "tenant": tenant,
            "requests_per_s": interval.rate(router.REQUESTS, tenant=tenant),
            "at_door": interval.now(router.AT_DOOR, tenant=tenant),
            "turned_away_per_s": interval.rate(router.TURNED_AWAY, tenant=tenant),
            "attainment": _share(
                interval.increase(router.GOODPUT, tenant=tenant),
                interval.increase(router.SLO_REQUESTS, tenant=tenant),
            ),
            "prompt_tokens_per_s": interval.rate(router.PROMPT_TOKENS, tenant=tenant),
            "generated_tokens_per_s": interval.rate(router.GENERATED, tenant=tenant),
            "cost_per_hour": costs.get(tenant),
        }
        for tenant in interval.values(router.REQUESTS, "tenant")
    ]


def _costs_per_hour(interval: Interval) -> dict[str, float]:
    """By tenant: what the pools cost, by shares in the computed prompt tokens and in the generated
    ones. Nobody, where nothing has a price."""
    shares: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    for tenant in interval.values(router.REQUESTS, "tenant"):
        prompt = interval.increase(router.PROMPT_TOKENS, tenant=tenant)
        cached = interval.increase(router.CACHED_TOKENS, tenant=tenant)
        shares["prefill"][tenant] = prompt - cached
        shares["decode"][tenant] = interval.increase(router.GENERATED, tenant=tenant)
    costs: dict[str, float] = {}
    for pool in interval.values(HOUR_PRICE, "pool"):
        price = interval.now(HOUR_PRICE, pool=pool)
        for tenant, tokens in shares[pool].items():
            part = _share(tokens, sum(shares[pool].values())) or 0.0
            costs[tenant] = costs.get(tenant, 0.0) + part * price
    return costs


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
