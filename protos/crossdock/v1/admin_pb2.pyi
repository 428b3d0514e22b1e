from crossdock.v1 import registry_pb2 as _registry_pb2
from crossdock.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ("validate",)
    VALIDATE_FIELD_NUMBER: _ClassVar[int]
    validate: bool
    def __init__(self, validate: bool = ...) -> None: ...

class ClusterStatus(_message.Message):
    __slots__ = ("model", "grpc_address", "http_address", "prefill_wanted", "decode_wanted", "workers", "restarts", "settled", "prefill_utilization", "decode_utilization", "metrics_address", "routers", "registry_address", "doors_tls")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WANTED_FIELD_NUMBER: _ClassVar[int]
    DECODE_WANTED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    DECODE_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUTERS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DOORS_TLS_FIELD_NUMBER: _ClassVar[int]
    model: str
    grpc_address: str
    http_address: str
    prefill_wanted: int
    decode_wanted: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    restarts: int
    settled: bool
    prefill_utilization: float
    decode_utilization: float
    metrics_address: str
    routers: _containers.RepeatedCompositeFieldContainer[_registry_pb2.RouterReport]
    registry_address: str
    doors_tls: bool
    def __init__(self, model: _Optional[str] = ..., grpc_address: _Optional[str] = ..., http_address: _Optional[str] = ..., prefill_wanted: _Optional[int] = ..., decode_wanted: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., restarts: _Optional[int] = ..., settled: bool = ..., prefill_utilization: _Optional[float] = ..., decode_utilization: _Optional[float] = ..., metrics_address: _Optional[str] = ..., routers: _Optional[_Iterable[_Union[_registry_pb2.RouterReport, _Mapping]]] = ..., registry_address: _Optional[str] = ..., doors_tls: bool = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker", "endpoint", "state", "detail", "stats", "tensor_parallel_size", "pipeline_parallel_size")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    worker: str
    endpoint: str
    state: str
    detail: str
    stats: _worker_pb2.WorkerStats
    tensor_parallel_size: int
    pipeline_parallel_size: int
    def __init__(self, worker: _Optional[str] = ..., endpoint: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., stats: _Optional[_Union[_worker_pb2.WorkerStats, _Mapping]] = ..., tensor_parallel_size: _Optional[int] = ..., pipeline_parallel_size: _Optional[int] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("prefill", "decode")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    prefill: int
    decode: int
    def __init__(self, prefill: _Optional[int] = ..., decode: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker", "no_replace", "limit_s")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    worker: str
    no_replace: bool
    limit_s: float
    def __init__(self, worker: _Optional[str] = ..., no_replace: bool = ..., limit_s: _Optional[float] = ...) -> None: ...

class FlipRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: str
    def __init__(self, worker: _Optional[str] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("address", "limit_s")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    address: str
    limit_s: float
    def __init__(self, address: _Optional[str] = ..., limit_s: _Optional[float] = ...) -> None: ...

class DrainNodeResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workers: _Optional[_Iterable[str]] = ...) -> None: ...

class WantedWorkers(_message.Message):
    __slots__ = ("prefill", "decode")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    prefill: int
    decode: int
    def __init__(self, prefill: _Optional[int] = ..., decode: _Optional[int] = ...) -> None: ...
