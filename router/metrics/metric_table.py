"""The metrics of a router. ``tenant`` is bounded: beyond the first 64 it is "other"."""

from __future__ import annotations

from core.metric_spec import (
    DECISION_EDGES,
    E2E_EDGES,
    ITL_EDGES,
    PART_EDGES,
    RATIO_EDGES,
    TOKEN_EDGES,
    TTFT_EDGES,
    counter,
    gauge,
    histogram,
)

REQUESTS = counter(
    "requests", "Requests by how they ended, refused ones too", "tenant", "slo_class", "outcome"
)
RUNNING = gauge("requests_running", "Requests under way, from arrival to end")
WAITING = gauge("requests_waiting", "Of those, the ones without a token yet")
STREAMING = gauge("requests_streaming", "Of those, the ones with a token")
AT_DOOR = gauge("requests_at_door", "Of the waiting ones, those on no worker yet", "tenant")
TURNED_AWAY = counter(
    "requests_turned_away",
    "Valid requests that were refused at the door, by why",
    "tenant",
    "reason",
)
RETRIES = counter("request_retries", "Attempts after the first one")
FAILED_ATTEMPTS = counter("attempt_failures", "Attempts that ended without an answer", "cause")
DEFECTS = counter("worker_defects", "Outputs of workers that made no sense")
PROMPT_TOKENS = counter("prompt_tokens", "Prompt tokens of finished requests", "tenant")
CACHED_TOKENS = counter("cached_tokens", "Of those, tokens that were in some cache", "tenant")
GENERATED = counter("generation_tokens", "Tokens sent to clients, all answers", "tenant")
READ_TOKENS = counter("tokens_read", "Of those, tokens that clients read from workers with tickets")
RELAYED = counter(
    "read_tickets_relayed", "Answers whose clients could not read them from the worker (any more)"
)

TTFT = histogram("time_to_first_token_seconds", "Arrival to first token", TTFT_EDGES)
ITL = histogram(
    "inter_token_latency_seconds",
    "Between outputs of an answer that pass this router",
    ITL_EDGES,
)
TPOT = histogram(
    "time_per_output_token_seconds",
    "Of an answer: first to last token, by the number of tokens after the first",
    ITL_EDGES,
)
E2E = histogram("e2e_request_latency_seconds", "Arrival to end of the last answer", E2E_EDGES)
QUEUE = histogram("request_queue_time_seconds", "Arrival to first dispatch", PART_EDGES)
PREFILL_TIME = histogram(
    "request_prefill_time_seconds", "First dispatch to first token, the handoff too", PART_EDGES
)
DECODE_TIME = histogram(
    "request_decode_time_seconds", "Of an answer: first token to its end", E2E_EDGES
)
INFERENCE_TIME = histogram(
    "request_inference_time_seconds", "First dispatch to end of the last answer", E2E_EDGES
)
PROMPT_LENGTH = histogram("request_prompt_tokens", "Tokens of a prompt", TOKEN_EDGES)
ANSWER_LENGTH = histogram("request_generation_tokens", "Tokens of an answer", TOKEN_EDGES)
LONGEST_ANSWER = histogram(
    "request_max_generation_tokens", "Tokens of the longest of a request's answers", TOKEN_EDGES
)
COMPUTED_LENGTH = histogram(
    "request_computed_prompt_tokens", "Tokens of a prompt that were in no cache", TOKEN_EDGES
)
FINISHES = counter("answers", "Finished answers", "finish_reason")

SLO_TARGET = gauge("slo_target_seconds", "What a request is to meet", "slo")
SLO_REQUESTS = counter(
    "slo_requests",
    "Requests that count for the SLOs: all that were taken and not cancelled by their client",
    "tenant",
    "slo_class",
)
SLO_MET = counter(
    "slo_met", "Of those, the ones that met this one SLO", "tenant", "slo_class", "slo"
)
GOODPUT = counter("goodput_requests", "Requests that met every SLO", "tenant", "slo_class")

WORKERS = gauge("workers", "Workers that may get requests", "role")
EXCLUDED = gauge("excluded_workers", "Workers that get no requests, by why", "reason")
DECISIONS = counter(
    "router_decisions",
    "Attempts placed: handoff; on D alone as there are no prefill workers (local), or as it is "
    "sooner, or as those have enough or failed (direct)",
    "mode",
)
DECISION_TIME = histogram("router_decision_seconds", "To choose the workers", DECISION_EDGES)
ROUTED_BLOCKS = counter("router_prompt_blocks", "Blocks of the prompts that were placed")
OVERLAP_BLOCKS = counter(
    "router_overlap_blocks",
    "Of those, leading blocks that the chosen worker of this role held by the index",
    "role",
)
PREDICTED_CACHED = counter(
    "router_predicted_cached_tokens",
    "Prompt tokens of finished requests that routing expected in a cache (cached_tokens: were)",
)
PREDICTED_TTFT = histogram(
    "router_predicted_ttft_seconds",
    "Dispatch to first token as the cost model saw it when it chose; attempts that answered",
    TTFT_EDGES,
)
TTFT_RATIO = histogram(
    "router_ttft_actual_over_predicted",
    "The same, as it was, by what was predicted: 1 is a perfect cost model",
    RATIO_EDGES,
)
PREDICTED_TPOT = histogram(
    "router_predicted_tpot_seconds",
    "Of an answer: seconds per token after the first as the cost model saw it when it chose",
    ITL_EDGES,
)
TPOT_RATIO = histogram(
    "router_tpot_actual_over_predicted",
    "The same, as it was, by what was predicted: 1 is a perfect cost model",
    RATIO_EDGES,
)
KV_EVENTS = counter("router_kv_events", "Messages about cached blocks, by worker", "worker")
KV_GAPS = counter("router_kv_event_gaps", "Times that missing ones were asked for", "worker")
KV_GUESSED = gauge(
    "router_kv_cache_guessed",
    "1: this worker gives no cache events; routing goes by what was sent to it",
    "worker",
)
INDEX_BLOCKS = gauge("router_index_blocks", "Different blocks in the prefix index")
INDEX_LEFT_OUT = counter(
    "router_index_left_out_blocks", "Blocks of events for which the prefix index had no room"
)
STORE_SHARED = gauge(
    "router_store_shared",
    "Only with a store. 1: what routers share is up to date; 0: this one goes by what it knows",
)
STORE_FAILURES = counter("router_store_failures", "Times that the store failed or was too slow")
STORE_TIME = histogram(
    "router_store_seconds",
    "What a request waited for the store: of those with an id of the client's choice, or limits",
    DECISION_EDGES,
)
PEERS = gauge("router_peers", "Only with a store. Other routers that live, as far as known")
SCRAPED = gauge(
    "scrape_success", "Only on /metrics/cluster. 1: this process told its metrics", "process"
)
KV_USAGE = gauge("kv_cache_usage_ratio", "Blocks in use, of all on workers that decode")
KV_CONFIG = gauge(
    "kv_cache_config_info",
    "1: tokens of a block, and blocks of all workers that decode",
    "block_size",
    "num_blocks",
)

TABLE = (
    *(
        REQUESTS,
        RUNNING,
        WAITING,
        STREAMING,
        AT_DOOR,
        TURNED_AWAY,
        RETRIES,
        FAILED_ATTEMPTS,
        DEFECTS,
    ),
    *(PROMPT_TOKENS, CACHED_TOKENS, GENERATED, READ_TOKENS, RELAYED),
    *(TTFT, ITL, TPOT, E2E, QUEUE, PREFILL_TIME, DECODE_TIME, INFERENCE_TIME),
    *(PROMPT_LENGTH, COMPUTED_LENGTH, ANSWER_LENGTH, LONGEST_ANSWER, FINISHES),
    *(SLO_TARGET, SLO_REQUESTS, SLO_MET, GOODPUT),
    *(WORKERS, EXCLUDED, DECISIONS, DECISION_TIME, ROUTED_BLOCKS, OVERLAP_BLOCKS),
    *(PREDICTED_CACHED, PREDICTED_TTFT, TTFT_RATIO, PREDICTED_TPOT, TPOT_RATIO),
    *(KV_EVENTS, KV_GAPS, KV_GUESSED, INDEX_BLOCKS, INDEX_LEFT_OUT, KV_USAGE, KV_CONFIG),
    *(STORE_SHARED, STORE_FAILURES, STORE_TIME, PEERS),
    SCRAPED,
)
