from crossdock.v1 import inference_pb2 as _inference_pb2
from crossdock.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadRequest(_message.Message):
    __slots__ = ("ticket", "position")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    position: int
    def __init__(self, ticket: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("responses", "position")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[_inference_pb2.GenerateResponse]
    position: int
    def __init__(self, responses: _Optional[_Iterable[_Union[_inference_pb2.GenerateResponse, _Mapping]]] = ..., position: _Optional[int] = ...) -> None: ...

class TicketClaims(_message.Message):
    __slots__ = ("router_id", "worker", "epoch", "key")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    worker: str
    epoch: int
    key: _worker_pb2.AttemptKey
    def __init__(self, router_id: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., key: _Optional[_Union[_worker_pb2.AttemptKey, _Mapping]] = ...) -> None: ...
