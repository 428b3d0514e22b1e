from crossdock.v1 import metrics_pb2 as _metrics_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Medium(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEDIUM_UNSPECIFIED: _ClassVar[Medium]
    DEVICE: _ClassVar[Medium]
MEDIUM_UNSPECIFIED: Medium
DEVICE: Medium

class AttemptKey(_message.Message):
    __slots__ = ("tenant", "request_id", "attempt")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    request_id: str
    attempt: int
    def __init__(self, tenant: _Optional[str] = ..., request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "n", "logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    n: int
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., min_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., n: _Optional[int] = ..., logprobs: _Optional[int] = ...) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("attach", "prefill", "open", "abort", "cache_request", "cache_fallback", "relay", "several")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    CACHE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    CACHE_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    SEVERAL_FIELD_NUMBER: _ClassVar[int]
    attach: Attach
    prefill: Prefill
    open: Open
    abort: Abort
    cache_request: CacheRequest
    cache_fallback: CacheFallback
    relay: RelayTokens
    several: RouterMessages
    def __init__(self, attach: _Optional[_Union[Attach, _Mapping]] = ..., prefill: _Optional[_Union[Prefill, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., cache_request: _Optional[_Union[CacheRequest, _Mapping]] = ..., cache_fallback: _Optional[_Union[CacheFallback, _Mapping]] = ..., relay: _Optional[_Union[RelayTokens, _Mapping]] = ..., several: _Optional[_Union[RouterMessages, _Mapping]] = ...) -> None: ...

class RouterMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[RouterMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[RouterMessage, _Mapping]]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("router_id", "cache_epoch", "cache_sequence", "ticket_key")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    CACHE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TICKET_KEY_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    cache_epoch: int
    cache_sequence: int
    ticket_key: bytes
    def __init__(self, router_id: _Optional[str] = ..., cache_epoch: _Optional[int] = ..., cache_sequence: _Optional[int] = ..., ticket_key: _Optional[bytes] = ...) -> None: ...

class CacheRequest(_message.Message):
    __slots__ = ("after_sequence",)
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    def __init__(self, after_sequence: _Optional[int] = ...) -> None: ...

class CacheFallback(_message.Message):
    __slots__ = ("active",)
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    active: bool
    def __init__(self, active: bool = ...) -> None: ...

class Prefill(_message.Message):
    __slots__ = ("key", "token_ids", "sampling", "decode_worker", "decode_endpoint", "decode_epoch", "salt", "deadline_s")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    DECODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    token_ids: bytes
    sampling: Sampling
    decode_worker: str
    decode_endpoint: str
    decode_epoch: int
    salt: int
    deadline_s: float
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., decode_worker: _Optional[str] = ..., decode_endpoint: _Optional[str] = ..., decode_epoch: _Optional[int] = ..., salt: _Optional[int] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("key", "mode", "token_ids", "sampling", "salt", "deadline_s", "read", "first_answer")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[Open.Mode]
        LOCAL: _ClassVar[Open.Mode]
        HANDOFF: _ClassVar[Open.Mode]
    MODE_UNSPECIFIED: Open.Mode
    LOCAL: Open.Mode
    HANDOFF: Open.Mode
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    FIRST_ANSWER_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    mode: Open.Mode
    token_ids: bytes
    sampling: Sampling
    salt: int
    deadline_s: float
    read: ReadByTicket
    first_answer: int
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ..., mode: _Optional[_Union[Open.Mode, str]] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., salt: _Optional[int] = ..., deadline_s: _Optional[float] = ..., read: _Optional[_Union[ReadByTicket, _Mapping]] = ..., first_answer: _Optional[int] = ...) -> None: ...

class ReadByTicket(_message.Message):
    __slots__ = ("valid_s", "prompt_tokens")
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    valid_s: float
    prompt_tokens: int
    def __init__(self, valid_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class RelayTokens(_message.Message):
    __slots__ = ("key", "position")
    KEY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    position: int
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ..., position: _Optional[int] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("welcome", "step", "failed", "cache")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    step: Step
    failed: AttemptFailed
    cache: CacheEvents
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., failed: _Optional[_Union[AttemptFailed, _Mapping]] = ..., cache: _Optional[_Union[CacheEvents, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("worker", "epoch", "role", "num_blocks", "block_size", "max_num_seqs", "metrics_address", "cache_events", "token_stream_address")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STREAM_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    role: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    metrics_address: str
    cache_events: bool
    token_stream_address: str
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., metrics_address: _Optional[str] = ..., cache_events: bool = ..., token_stream_address: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("outputs", "load", "cache_sequence", "cache", "further")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CACHE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    FURTHER_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[SequenceOutput]
    load: Load
    cache_sequence: int
    cache: CacheEvents
    further: FurtherTokens
    def __init__(self, outputs: _Optional[_Iterable[_Union[SequenceOutput, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., cache_sequence: _Optional[int] = ..., cache: _Optional[_Union[CacheEvents, _Mapping]] = ..., further: _Optional[_Union[FurtherTokens, _Mapping]] = ...) -> None: ...

class FurtherTokens(_message.Message):
    __slots__ = ("answers", "token_ids", "texts")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, answers: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class SequenceOutput(_message.Message):
    __slots__ = ("key", "token_ids", "text", "finish_reason", "cached_tokens", "index", "logprobs", "read_tokens", "counted")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    finish_reason: str
    cached_tokens: int
    index: int
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    read_tokens: int
    counted: bool
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., read_tokens: _Optional[int] = ..., counted: bool = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "free_blocks", "pending_prefill_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PENDING_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    free_blocks: int
    pending_prefill_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., free_blocks: _Optional[int] = ..., pending_prefill_tokens: _Optional[int] = ...) -> None: ...

class AttemptFailed(_message.Message):
    __slots__ = ("key", "cause", "detail")
    class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CAUSE_UNSPECIFIED: _ClassVar[AttemptFailed.Cause]
        NO_ROOM: _ClassVar[AttemptFailed.Cause]
        DECODE_LOST: _ClassVar[AttemptFailed.Cause]
        PREFILL_LOST: _ClassVar[AttemptFailed.Cause]
        LEASE_EXPIRED: _ClassVar[AttemptFailed.Cause]
        INCOMPATIBLE: _ClassVar[AttemptFailed.Cause]
        REJECTED: _ClassVar[AttemptFailed.Cause]
        DEADLINE: _ClassVar[AttemptFailed.Cause]
        DRAINING: _ClassVar[AttemptFailed.Cause]
        INTERNAL: _ClassVar[AttemptFailed.Cause]
        READER_LOST: _ClassVar[AttemptFailed.Cause]
    CAUSE_UNSPECIFIED: AttemptFailed.Cause
    NO_ROOM: AttemptFailed.Cause
    DECODE_LOST: AttemptFailed.Cause
    PREFILL_LOST: AttemptFailed.Cause
    LEASE_EXPIRED: AttemptFailed.Cause
    INCOMPATIBLE: AttemptFailed.Cause
    REJECTED: AttemptFailed.Cause
    DEADLINE: AttemptFailed.Cause
    DRAINING: AttemptFailed.Cause
    INTERNAL: AttemptFailed.Cause
    READER_LOST: AttemptFailed.Cause
    KEY_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    key: AttemptKey
    cause: AttemptFailed.Cause
    detail: str
    def __init__(self, key: _Optional[_Union[AttemptKey, _Mapping]] = ..., cause: _Optional[_Union[AttemptFailed.Cause, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class CacheEvents(_message.Message):
    __slots__ = ("cleared", "epoch", "sequence", "stored", "removed")
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    cleared: bool
    epoch: int
    sequence: int
    stored: _containers.RepeatedCompositeFieldContainer[BlocksStored]
    removed: _containers.RepeatedCompositeFieldContainer[BlocksRemoved]
    def __init__(self, cleared: bool = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., stored: _Optional[_Iterable[_Union[BlocksStored, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[BlocksRemoved, _Mapping]]] = ...) -> None: ...

class BlocksStored(_message.Message):
    __slots__ = ("medium", "hashes", "starts", "parents")
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    medium: Medium
    hashes: bytes
    starts: bytes
    parents: bytes
    def __init__(self, medium: _Optional[_Union[Medium, str]] = ..., hashes: _Optional[bytes] = ..., starts: _Optional[bytes] = ..., parents: _Optional[bytes] = ...) -> None: ...

class BlocksRemoved(_message.Message):
    __slots__ = ("medium", "hashes")
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    medium: Medium
    hashes: bytes
    def __init__(self, medium: _Optional[_Union[Medium, str]] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("validate",)
    VALIDATE_FIELD_NUMBER: _ClassVar[int]
    validate: bool
    def __init__(self, validate: bool = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("worker", "epoch", "role", "load", "total_blocks", "free_blocks", "cached_blocks", "leased_blocks", "quarantined_blocks", "prefill_tokens_computed", "recomputed_tokens", "decode_tokens", "preemptions", "prefix_tokens_hit", "leases", "edges", "events", "cores", "threads", "pid", "steps", "routers", "ranks", "max_num_seqs", "busy_s", "metrics_address", "cache_sequence", "routers_without_events")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_HIT_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_WITHOUT_EVENTS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    role: str
    load: Load
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    leased_blocks: int
    quarantined_blocks: int
    prefill_tokens_computed: int
    recomputed_tokens: int
    decode_tokens: int
    preemptions: int
    prefix_tokens_hit: int
    leases: int
    edges: _containers.RepeatedCompositeFieldContainer[EdgeStats]
    events: _containers.RepeatedCompositeFieldContainer[LoggedEvent]
    cores: _containers.RepeatedScalarFieldContainer[int]
    threads: int
    pid: int
    steps: int
    routers: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankStats]
    max_num_seqs: int
    busy_s: float
    metrics_address: str
    cache_sequence: int
    routers_without_events: int
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., total_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., leased_blocks: _Optional[int] = ..., quarantined_blocks: _Optional[int] = ..., prefill_tokens_computed: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., decode_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., prefix_tokens_hit: _Optional[int] = ..., leases: _Optional[int] = ..., edges: _Optional[_Iterable[_Union[EdgeStats, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[LoggedEvent, _Mapping]]] = ..., cores: _Optional[_Iterable[int]] = ..., threads: _Optional[int] = ..., pid: _Optional[int] = ..., steps: _Optional[int] = ..., routers: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankStats, _Mapping]]] = ..., max_num_seqs: _Optional[int] = ..., busy_s: _Optional[float] = ..., metrics_address: _Optional[str] = ..., cache_sequence: _Optional[int] = ..., routers_without_events: _Optional[int] = ...) -> None: ...

class RankStats(_message.Message):
    __slots__ = ("rank", "pid", "host", "cores", "threads", "intervals", "kernels", "steps", "busy_s", "cpu_s", "resident_bytes")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    host: str
    cores: _containers.RepeatedScalarFieldContainer[int]
    threads: int
    intervals: _containers.RepeatedCompositeFieldContainer[StepInterval]
    kernels: str
    steps: int
    busy_s: float
    cpu_s: float
    resident_bytes: int
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ..., host: _Optional[str] = ..., cores: _Optional[_Iterable[int]] = ..., threads: _Optional[int] = ..., intervals: _Optional[_Iterable[_Union[StepInterval, _Mapping]]] = ..., kernels: _Optional[str] = ..., steps: _Optional[int] = ..., busy_s: _Optional[float] = ..., cpu_s: _Optional[float] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

class StepInterval(_message.Message):
    __slots__ = ("step", "start_s", "end_s")
    STEP_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    step: int
    start_s: float
    end_s: float
    def __init__(self, step: _Optional[int] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ...) -> None: ...

class EdgeStats(_message.Message):
    __slots__ = ("peer", "transport", "bytes", "blocks", "seconds", "resent_blocks", "detail", "source_rank", "destination_rank")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESENT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RANK_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_RANK_FIELD_NUMBER: _ClassVar[int]
    peer: str
    transport: str
    bytes: int
    blocks: int
    seconds: float
    resent_blocks: int
    detail: str
    source_rank: int
    destination_rank: int
    def __init__(self, peer: _Optional[str] = ..., transport: _Optional[str] = ..., bytes: _Optional[int] = ..., blocks: _Optional[int] = ..., seconds: _Optional[float] = ..., resent_blocks: _Optional[int] = ..., detail: _Optional[str] = ..., source_rank: _Optional[int] = ..., destination_rank: _Optional[int] = ...) -> None: ...

class LoggedEvent(_message.Message):
    __slots__ = ("at_s", "name", "attempt", "detail")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    name: str
    attempt: str
    detail: str
    def __init__(self, at_s: _Optional[float] = ..., name: _Optional[str] = ..., attempt: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
