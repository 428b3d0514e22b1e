from crossdock.v1 import metrics_pb2 as _metrics_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("router_id",)
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    def __init__(self, router_id: _Optional[str] = ...) -> None: ...

class WorkerList(_message.Message):
    __slots__ = ("workers", "metrics_address", "cache_secret")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SECRET_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerRecord]
    metrics_address: str
    cache_secret: bytes
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerRecord, _Mapping]]] = ..., metrics_address: _Optional[str] = ..., cache_secret: _Optional[bytes] = ...) -> None: ...

class WorkerRecord(_message.Message):
    __slots__ = ("worker", "endpoint", "epoch", "role", "draining")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    worker: str
    endpoint: str
    epoch: int
    role: str
    draining: bool
    def __init__(self, worker: _Optional[str] = ..., endpoint: _Optional[str] = ..., epoch: _Optional[int] = ..., role: _Optional[str] = ..., draining: bool = ...) -> None: ...

class RouterReport(_message.Message):
    __slots__ = ("router_id", "grpc_address", "store", "degraded", "peers", "store_in_clear")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    STORE_IN_CLEAR_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    grpc_address: str
    store: str
    degraded: str
    peers: int
    store_in_clear: bool
    def __init__(self, router_id: _Optional[str] = ..., grpc_address: _Optional[str] = ..., store: _Optional[str] = ..., degraded: _Optional[str] = ..., peers: _Optional[int] = ..., store_in_clear: bool = ...) -> None: ...

class RouterReported(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
