"""The metrics of a worker. Each sample has the labels ``worker`` and ``role`` as well."""

from __future__ import annotations

from core.metric_spec import ITL_EDGES, TTFT_EDGES, counter, gauge, histogram

# On every sample of a worker.
PROCESS_LABELS = ("worker", "role")
_EDGE = ("peer", "transport", "source_rank", "destination_rank")

RUNNING = gauge("worker_sequences_running", "Running sequences; on P started prompts")
WAITING = gauge("worker_sequences_waiting", "Sequences, prompts and reserves that wait")
MAX_SEQUENCES = gauge("worker_max_sequences", "Sequences that run at a time at most")
PENDING = gauge("worker_pending_prefill_tokens", "Prompt tokens taken and not yet computed")
BLOCKS = gauge("kv_blocks", "Blocks of the KV pool: free, cached, leased, quarantined", "state")
POOL_BLOCKS = gauge("kv_pool_blocks", "All blocks of the KV pool")
ORPHANS = gauge("orphan_blocks", "Blocks that nobody holds and nobody can have: must be 0")
LEASES = gauge("leases", "On D promises of blocks, on P prompts whose handoff is not over")

COMPUTED = counter("prefill_tokens_computed", "Prompt tokens computed for the first time")
RECOMPUTED = counter("recomputed_tokens", "Tokens computed again: preempted or damaged")
PREFIX_HITS = counter("prefix_tokens_hit", "Prompt tokens taken from the prefix cache")
DECODED = counter("decode_tokens", "Tokens drawn while decoding")
PREEMPTIONS = counter("preemptions", "Sequences that gave their blocks up to older ones")
STEPS = counter("engine_steps", "Steps of the engine")
BUSY = counter("engine_busy_seconds", "Seconds in which the engine computed")
STEP_TIME = histogram("engine_step_seconds", "Seconds that a step kept the engine busy", ITL_EDGES)
FLOPS = counter("model_flops", "Floating-point operations that the model asked for, all ranks")
BYTES = counter("model_read_bytes", "Bytes of weights and KV that it read and wrote, all ranks")
PEAK_FLOPS = gauge("peak_flops", "FLOP/s of all ranks at best: 100 % MFU", "source")
PEAK_BANDWIDTH = gauge("peak_memory_bytes", "Bytes/s of all ranks at best: 100 % MBU", "source")
PHASES = histogram(
    "request_phase_seconds",
    "Of attempts that came through on this worker, what it saw of each phase before the first "
    "token: queue, prefill, reserve, transfer, commit",
    TTFT_EDGES,
    "phase",
)

EDGE_BYTES = counter("edge_bytes", "KV bytes that came over this edge", *_EDGE)
EDGE_BLOCKS = counter("edge_blocks", "Blocks of which it carried a part", *_EDGE)
EDGE_TIME = counter("edge_seconds", "Seconds in which it was copying", *_EDGE)
EDGE_RESENT = counter("edge_resent_blocks", "Damaged blocks that were asked for again", *_EDGE)
EDGE_SLOW = gauge(
    "edge_slow",
    "1: a faster transport was tried and did not work, or the peer was refused; else 0",
    *_EDGE,
)
RANK_UP = gauge("rank_up", "1: this rank of the worker told its numbers; 0: it did not", "rank")
RANK_STEPS = counter("rank_steps", "Steps that this rank computed", "rank")
RANK_BUSY = counter(
    "rank_busy_seconds", "Seconds of these steps, waiting for other ranks within them too", "rank"
)
RANK_CPU = counter("rank_cpu_seconds", "Seconds of CPU time of its process", "rank")
RANK_MEMORY = gauge("rank_resident_memory_bytes", "Memory that its process holds", "rank")
ROUTERS = gauge("worker_routers", "Routers that are attached")

TABLE = (
    *(RUNNING, WAITING, MAX_SEQUENCES, PENDING, BLOCKS, POOL_BLOCKS, ORPHANS, LEASES, ROUTERS),
    *(COMPUTED, RECOMPUTED, PREFIX_HITS, DECODED, PREEMPTIONS),
    *(STEPS, BUSY, STEP_TIME, FLOPS, BYTES, PEAK_FLOPS, PEAK_BANDWIDTH, PHASES),
    *(EDGE_BYTES, EDGE_BLOCKS, EDGE_TIME, EDGE_RESENT, EDGE_SLOW),
    *(RANK_UP, RANK_STEPS, RANK_BUSY, RANK_CPU, RANK_MEMORY),
)
