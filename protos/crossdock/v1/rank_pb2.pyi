from crossdock.v1 import handoff_pb2 as _handoff_pb2
from crossdock.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankMessage(_message.Message):
    __slots__ = ("request", "answer", "refusal", "done", "join", "set_value", "get_value", "ready", "step_result", "pong", "crashed", "found_value", "step", "ping", "stop", "ask_stats", "stats", "make_offer", "offer", "describe", "checksums", "withdraw", "open", "opened", "copy", "copied", "abort", "close")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    SET_VALUE_FIELD_NUMBER: _ClassVar[int]
    GET_VALUE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STEP_RESULT_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    CRASHED_FIELD_NUMBER: _ClassVar[int]
    FOUND_VALUE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ASK_STATS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    MAKE_OFFER_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    request: int
    answer: int
    refusal: RankRefusal
    done: RankDone
    join: JoinReplica
    set_value: SetValue
    get_value: GetValue
    ready: RankReady
    step_result: RankStepResult
    pong: RankPong
    crashed: RankCrashed
    found_value: FoundValue
    step: RankStep
    ping: RankPing
    stop: StopRank
    ask_stats: AskRankStats
    stats: _worker_pb2.RankStats
    make_offer: MakeOffer
    offer: _handoff_pb2.RankOffer
    describe: DescribeBlocks
    checksums: BlockChecksums
    withdraw: WithdrawOffer
    open: OpenEdges
    opened: OpenedEdges
    copy: CopyBlocks
    copied: CopiedBlocks
    abort: AbortCopies
    close: CloseEdges
    def __init__(self, request: _Optional[int] = ..., answer: _Optional[int] = ..., refusal: _Optional[_Union[RankRefusal, _Mapping]] = ..., done: _Optional[_Union[RankDone, _Mapping]] = ..., join: _Optional[_Union[JoinReplica, _Mapping]] = ..., set_value: _Optional[_Union[SetValue, _Mapping]] = ..., get_value: _Optional[_Union[GetValue, _Mapping]] = ..., ready: _Optional[_Union[RankReady, _Mapping]] = ..., step_result: _Optional[_Union[RankStepResult, _Mapping]] = ..., pong: _Optional[_Union[RankPong, _Mapping]] = ..., crashed: _Optional[_Union[RankCrashed, _Mapping]] = ..., found_value: _Optional[_Union[FoundValue, _Mapping]] = ..., step: _Optional[_Union[RankStep, _Mapping]] = ..., ping: _Optional[_Union[RankPing, _Mapping]] = ..., stop: _Optional[_Union[StopRank, _Mapping]] = ..., ask_stats: _Optional[_Union[AskRankStats, _Mapping]] = ..., stats: _Optional[_Union[_worker_pb2.RankStats, _Mapping]] = ..., make_offer: _Optional[_Union[MakeOffer, _Mapping]] = ..., offer: _Optional[_Union[_handoff_pb2.RankOffer, _Mapping]] = ..., describe: _Optional[_Union[DescribeBlocks, _Mapping]] = ..., checksums: _Optional[_Union[BlockChecksums, _Mapping]] = ..., withdraw: _Optional[_Union[WithdrawOffer, _Mapping]] = ..., open: _Optional[_Union[OpenEdges, _Mapping]] = ..., opened: _Optional[_Union[OpenedEdges, _Mapping]] = ..., copy: _Optional[_Union[CopyBlocks, _Mapping]] = ..., copied: _Optional[_Union[CopiedBlocks, _Mapping]] = ..., abort: _Optional[_Union[AbortCopies, _Mapping]] = ..., close: _Optional[_Union[CloseEdges, _Mapping]] = ...) -> None: ...

class RankRefusal(_message.Message):
    __slots__ = ("incompatible", "reason", "detail")
    INCOMPATIBLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    incompatible: bool
    reason: str
    detail: str
    def __init__(self, incompatible: bool = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class RankDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinReplica(_message.Message):
    __slots__ = ("rank", "worker", "tensor_parallel_size", "pipeline_parallel_size", "num_blocks", "block_size", "dtype")
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    worker: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    num_blocks: int
    block_size: int
    dtype: str
    def __init__(self, rank: _Optional[int] = ..., worker: _Optional[str] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class SetValue(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class GetValue(_message.Message):
    __slots__ = ("key", "now")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    key: str
    now: bool
    def __init__(self, key: _Optional[str] = ..., now: bool = ...) -> None: ...

class FoundValue(_message.Message):
    __slots__ = ("value", "missing")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    missing: bool
    def __init__(self, value: _Optional[bytes] = ..., missing: bool = ...) -> None: ...

class RankReady(_message.Message):
    __slots__ = ("model_hash",)
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    model_hash: int
    def __init__(self, model_hash: _Optional[int] = ...) -> None: ...

class RankCrashed(_message.Message):
    __slots__ = ("detail",)
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    detail: str
    def __init__(self, detail: _Optional[str] = ...) -> None: ...

class RankPing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankPong(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRank(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AskRankStats(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankStep(_message.Message):
    __slots__ = ("number", "plan", "block_ids", "generations")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    number: int
    plan: RankPlan
    block_ids: bytes
    generations: bytes
    def __init__(self, number: _Optional[int] = ..., plan: _Optional[_Union[RankPlan, _Mapping]] = ..., block_ids: _Optional[bytes] = ..., generations: _Optional[bytes] = ...) -> None: ...

class RankPlan(_message.Message):
    __slots__ = ("sequence_ids", "starts", "token_counts", "tokens", "table_sizes", "block_tables", "draws", "copies")
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TABLE_SIZES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TABLES_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: bytes
    starts: bytes
    token_counts: bytes
    tokens: bytes
    table_sizes: bytes
    block_tables: bytes
    draws: _containers.RepeatedCompositeFieldContainer[RankDraws]
    copies: bytes
    def __init__(self, sequence_ids: _Optional[bytes] = ..., starts: _Optional[bytes] = ..., token_counts: _Optional[bytes] = ..., tokens: _Optional[bytes] = ..., table_sizes: _Optional[bytes] = ..., block_tables: _Optional[bytes] = ..., draws: _Optional[_Iterable[_Union[RankDraws, _Mapping]]] = ..., copies: _Optional[bytes] = ...) -> None: ...

class RankDraws(_message.Message):
    __slots__ = ("slice", "sampling", "position", "tokens", "prompt_length", "sequence_indices", "banned_token_ids")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_INDICES_FIELD_NUMBER: _ClassVar[int]
    BANNED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    slice: int
    sampling: bytes
    position: int
    tokens: bytes
    prompt_length: int
    sequence_indices: _containers.RepeatedScalarFieldContainer[int]
    banned_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slice: _Optional[int] = ..., sampling: _Optional[bytes] = ..., position: _Optional[int] = ..., tokens: _Optional[bytes] = ..., prompt_length: _Optional[int] = ..., sequence_indices: _Optional[_Iterable[int]] = ..., banned_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RankStepResult(_message.Message):
    __slots__ = ("number", "sequence_ids", "counts", "tokens", "logprobs", "failed")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    number: int
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[DrawnLogprobs]
    failed: _containers.ScalarMap[int, str]
    def __init__(self, number: _Optional[int] = ..., sequence_ids: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[DrawnLogprobs, _Mapping]]] = ..., failed: _Optional[_Mapping[int, str]] = ...) -> None: ...

class DrawnLogprobs(_message.Message):
    __slots__ = ("token", "logprob", "top_token_ids", "top_logprobs")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class MakeOffer(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class DescribeBlocks(_message.Message):
    __slots__ = ("stream", "after_step", "tensor_parallel_size", "pipeline_parallel_size", "block_ids")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    after_step: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    block_ids: bytes
    def __init__(self, stream: _Optional[str] = ..., after_step: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ..., block_ids: _Optional[bytes] = ...) -> None: ...

class BlockChecksums(_message.Message):
    __slots__ = ("edges", "checksums")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    edges: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, edges: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class WithdrawOffer(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class OpenEdges(_message.Message):
    __slots__ = ("stream", "hello")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    stream: str
    hello: _handoff_pb2.Hello
    def __init__(self, stream: _Optional[str] = ..., hello: _Optional[_Union[_handoff_pb2.Hello, _Mapping]] = ...) -> None: ...

class OpenedEdges(_message.Message):
    __slots__ = ("edges",)
    EDGES_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[OpenedEdge]
    def __init__(self, edges: _Optional[_Iterable[_Union[OpenedEdge, _Mapping]]] = ...) -> None: ...

class OpenedEdge(_message.Message):
    __slots__ = ("source", "destination", "transport", "detail")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    source: int
    destination: int
    transport: str
    detail: str
    def __init__(self, source: _Optional[int] = ..., destination: _Optional[int] = ..., transport: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class CopyBlocks(_message.Message):
    __slots__ = ("stream", "after_step", "indices", "destinations", "pieces")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    DESTINATIONS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    stream: str
    after_step: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    destinations: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedCompositeFieldContainer[_handoff_pb2.Piece]
    def __init__(self, stream: _Optional[str] = ..., after_step: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ..., destinations: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[_Union[_handoff_pb2.Piece, _Mapping]]] = ...) -> None: ...

class CopiedBlocks(_message.Message):
    __slots__ = ("good", "bad", "traffic", "lost")
    GOOD_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    good: _containers.RepeatedScalarFieldContainer[int]
    bad: _containers.RepeatedScalarFieldContainer[int]
    traffic: _containers.RepeatedCompositeFieldContainer[EdgeTraffic]
    lost: str
    def __init__(self, good: _Optional[_Iterable[int]] = ..., bad: _Optional[_Iterable[int]] = ..., traffic: _Optional[_Iterable[_Union[EdgeTraffic, _Mapping]]] = ..., lost: _Optional[str] = ...) -> None: ...

class EdgeTraffic(_message.Message):
    __slots__ = ("source", "destination", "blocks", "damaged", "bytes", "seconds")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    source: int
    destination: int
    blocks: int
    damaged: int
    bytes: int
    seconds: float
    def __init__(self, source: _Optional[int] = ..., destination: _Optional[int] = ..., blocks: _Optional[int] = ..., damaged: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class AbortCopies(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class CloseEdges(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...
