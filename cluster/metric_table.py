"""The metrics of the controller."""

from __future__ import annotations

from core.metric_spec import counter, gauge

WANTED = gauge("pool_wanted_workers", "Workers that a pool is to have", "pool")
MEMBERS = gauge("pool_members", "Workers by what they are doing", "pool", "state")
RESTARTS = counter("worker_restarts", "Workers that were lost and started again")
SETTLED = gauge("cluster_settled", "1: as many workers serve as are wanted; 0: changing")
UTILIZATION = gauge(
    "pool_utilization_ratio",
    "How much of a pool was used lately. Prefill: the share of time in which engines computed. "
    "Decode: the fullest of sequences, KV blocks and, of slo.tpot, the time of a step",
    "pool",
)
IMBALANCE = gauge(
    "pool_ratio_imbalance",
    "Utilization of prefill less that of decode, -1 to 1: above 0 too few workers prefill",
)
HOUR_PRICE = gauge("pool_hour_price", "Price of all ranks of the pool's workers, an hour", "pool")

TABLE = (WANTED, MEMBERS, RESTARTS, SETTLED, UTILIZATION, IMBALANCE, HOUR_PRICE)
