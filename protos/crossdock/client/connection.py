"""How a client's connection behaves, each limit set on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

# What the router takes in, too. An answer never comes near it.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024

Metadata = tuple[tuple[str, str], ...]

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # One number for both limits: between them gRPC refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A connection of its own per client: gRPC shares one between channels of a process, and with
    # it the number of calls that the router lets one connection have open.
    ("grpc.use_local_subchannel_pool", 1),
    # A router whose host vanished is noticed within 50 s while a call runs. The router allows a
    # ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # However long a request waits without a token, its pings go on.
    ("grpc.http2.max_pings_without_data", 0),
    # A router that comes back is found again before retries are used up: gRPC's own pauses start
    # with a second and grow to two minutes, and calls fail at once in between.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


# A worker that can't be reached is noticed in time for the router to take over.
_CONNECT_MS = 2_000
WORKER_CHANNEL_OPTIONS = (
    *(option for option in CHANNEL_OPTIONS if option[0] != "grpc.min_reconnect_backoff_ms"),
    ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
)
_UNREACHABLE_S = 60.0
# Workers come and go, and each that comes has a port of its own.
_IDLE_S = 300.0


Channel = TypeVar("Channel")


class WorkerChannels(Generic[Channel]):
    """Channels to decode workers by endpoint, made by ``connect``. For threads, too.

    Where nobody could be reached nobody is looked for again for a minute, and the channel is given
    up with its last call; one that nobody used for a while is given up with another's call. Times
    in seconds, monotonic.
    """

    def __init__(self, connect: Callable[[str], Channel]) -> None:
        self._connect = connect
        self._lock = Lock()
        self._channels: dict[str, Channel] = {}
        self._calls: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._lost: dict[str, float] = {}

    def take(self, endpoint: str, now: float) -> Channel | None:
        """For one call, after which it is given back; None: not worth a try."""
        with self._lock:
            if now - self._lost.get(endpoint, -_UNREACHABLE_S) < _UNREACHABLE_S:
                return None
            self._lost.pop(endpoint, None)
            if endpoint not in self._channels:
                self._channels[endpoint] = self._connect(endpoint)
            self._calls[endpoint] += 1
            return self._channels[endpoint]

    def give_back(self, endpoint: str, reached: bool, now: float) -> list[Channel]:
        """The channels that are to be closed."""
        with self._lock:
            self._calls[endpoint] -= 1
            self._used[endpoint] = now
            if not reached:
                self._lost[endpoint] = now
            self._lost = {e: at for e, at in self._lost.items() if now - at < _UNREACHABLE_S}
            return [self._drop(unused) for unused in self._unused(now)]

    def _unused(self, now: float) -> list[str]:
        return [
            endpoint
            for endpoint, used in self._used.items()
            if not self._calls[endpoint] and (endpoint in self._lost or now - used >= _IDLE_S)
        ]

    def _drop(self, endpoint: str) -> Channel:
        del self._calls[endpoint], self._used[endpoint]
        return self._channels.pop(endpoint)

    @property
    def all(self) -> list[Channel]:
        with self._lock:
            return list(self._channels.values())


def authorization(api_key: str | None) -> Metadata:
    """What a call says of who calls. Raises ``ValueError`` for a key that no header can hold."""
    if api_key is None:
        return ()
    if not api_key.isascii() or not api_key.isprintable():
        raise ValueError("api_key must be printable ASCII characters, without line ends")
    return (("authorization", f"Bearer {api_key}"),)
