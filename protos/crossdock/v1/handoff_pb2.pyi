from crossdock.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillMessage(_message.Message):
    __slots__ = ("hello", "reserve", "announce", "commit", "beat", "cancel", "more")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    reserve: Reserve
    announce: Announce
    commit: Commit
    beat: Beat
    cancel: Cancel
    more: _containers.RepeatedCompositeFieldContainer[PrefillMessage]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., announce: _Optional[_Union[Announce, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., more: _Optional[_Iterable[_Union[PrefillMessage, _Mapping]]] = ...) -> None: ...

class DecodeMessage(_message.Message):
    __slots__ = ("hello", "ticket", "no_room", "ack", "committed", "lost", "more")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    NO_ROOM_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    hello: HelloReply
    ticket: Ticket
    no_room: NoRoom
    ack: Ack
    committed: Committed
    lost: LeaseLost
    more: _containers.RepeatedCompositeFieldContainer[DecodeMessage]
    def __init__(self, hello: _Optional[_Union[HelloReply, _Mapping]] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., no_room: _Optional[_Union[NoRoom, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., lost: _Optional[_Union[LeaseLost, _Mapping]] = ..., more: _Optional[_Iterable[_Union[DecodeMessage, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "worker", "epoch", "decode_epoch", "model_hash", "layout_hash", "dtype", "block_size", "tensor_parallel_size", "pipeline_parallel_size", "ranks")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DECODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_HASH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker: str
    epoch: int
    decode_epoch: int
    model_hash: int
    layout_hash: int
    dtype: str
    block_size: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankOffer]
    def __init__(self, protocol_version: _Optional[int] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., decode_epoch: _Optional[int] = ..., model_hash: _Optional[int] = ..., layout_hash: _Optional[int] = ..., dtype: _Optional[str] = ..., block_size: _Optional[int] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankOffer, _Mapping]]] = ...) -> None: ...

class RankOffer(_message.Message):
    __slots__ = ("transports", "shm", "tcp", "cuda_ipc", "nccl")
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    CUDA_IPC_FIELD_NUMBER: _ClassVar[int]
    NCCL_FIELD_NUMBER: _ClassVar[int]
    transports: _containers.RepeatedScalarFieldContainer[str]
    shm: ShmOffer
    tcp: TcpOffer
    cuda_ipc: CudaIpcOffer
    nccl: NcclOffer
    def __init__(self, transports: _Optional[_Iterable[str]] = ..., shm: _Optional[_Union[ShmOffer, _Mapping]] = ..., tcp: _Optional[_Union[TcpOffer, _Mapping]] = ..., cuda_ipc: _Optional[_Union[CudaIpcOffer, _Mapping]] = ..., nccl: _Optional[_Union[NcclOffer, _Mapping]] = ...) -> None: ...

class ShmOffer(_message.Message):
    __slots__ = ("socket_path", "nonce", "num_blocks")
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    socket_path: str
    nonce: int
    num_blocks: int
    def __init__(self, socket_path: _Optional[str] = ..., nonce: _Optional[int] = ..., num_blocks: _Optional[int] = ...) -> None: ...

class TcpOffer(_message.Message):
    __slots__ = ("host", "port", "token", "tls")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    token: bytes
    tls: bool
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., token: _Optional[bytes] = ..., tls: bool = ...) -> None: ...

class CudaIpcOffer(_message.Message):
    __slots__ = ("socket_path", "nonce", "num_blocks", "pool", "probe")
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    socket_path: str
    nonce: int
    num_blocks: int
    pool: CudaMemory
    probe: CudaMemory
    def __init__(self, socket_path: _Optional[str] = ..., nonce: _Optional[int] = ..., num_blocks: _Optional[int] = ..., pool: _Optional[_Union[CudaMemory, _Mapping]] = ..., probe: _Optional[_Union[CudaMemory, _Mapping]] = ...) -> None: ...

class CudaMemory(_message.Message):
    __slots__ = ("handle", "offset", "size")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    handle: bytes
    offset: int
    size: int
    def __init__(self, handle: _Optional[bytes] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class NcclOffer(_message.Message):
    __slots__ = ("host", "port", "token")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    token: bytes
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("refused", "tensor_parallel_size", "pipeline_parallel_size", "transports")
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    refused: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    transports: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, refused: _Optional[str] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ..., transports: _Optional[_Iterable[str]] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("key", "token_ids", "salt", "sampling")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    token_ids: bytes
    salt: int
    sampling: _worker_pb2.Sampling
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., token_ids: _Optional[bytes] = ..., salt: _Optional[int] = ..., sampling: _Optional[_Union[_worker_pb2.Sampling, _Mapping]] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("key", "lease_id", "held_blocks")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    held_blocks: int
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ..., held_blocks: _Optional[int] = ...) -> None: ...

class NoRoom(_message.Message):
    __slots__ = ("key", "detail")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    detail: str
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., detail: _Optional[str] = ...) -> None: ...

class Announce(_message.Message):
    __slots__ = ("key", "lease_id", "first", "pieces")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    first: int
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ..., first: _Optional[int] = ..., pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("block_id", "generation", "checksums")
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    block_id: int
    generation: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, block_id: _Optional[int] = ..., generation: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("key", "lease_id", "verified", "resend")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    verified: int
    resend: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ..., verified: _Optional[int] = ..., resend: _Optional[_Iterable[int]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("key", "lease_id", "cached_tokens", "first_tokens")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    cached_tokens: int
    first_tokens: _containers.RepeatedCompositeFieldContainer[FirstToken]
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., first_tokens: _Optional[_Iterable[_Union[FirstToken, _Mapping]]] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token_id", "logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprobs: _worker_pb2.TokenLogprobs
    def __init__(self, token_id: _Optional[int] = ..., logprobs: _Optional[_Union[_worker_pb2.TokenLogprobs, _Mapping]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("key", "lease_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("leases", "longest_step_s")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LONGEST_STEP_S_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseProgress]
    longest_step_s: float
    def __init__(self, leases: _Optional[_Iterable[_Union[LeaseProgress, _Mapping]]] = ..., longest_step_s: _Optional[float] = ...) -> None: ...

class LeaseProgress(_message.Message):
    __slots__ = ("lease_id", "computed_tokens")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    computed_tokens: int
    def __init__(self, lease_id: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("key", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    reason: str
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class LeaseLost(_message.Message):
    __slots__ = ("key", "lease_id", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: _worker_pb2.AttemptKey
    lease_id: int
    reason: str
    def __init__(self, key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ..., lease_id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
