"""What the gRPC door takes in: sizes, numbers and patience, each set on purpose.

Does not cover: what a request may ask for (``router.intake.validation``), load (the dispatcher).
"""

from __future__ import annotations

from router.doors.http_bodies import MAX_BODY_BYTES

# Calls that one connection may have open. gRPC refuses further ones unprocessed (UNAVAILABLE),
# so that a client can send them again; a program that wants more opens another connection.
MAX_STREAMS_PER_CONNECTION = 4_096
# Calls of all connections that have come and that no handler has taken yet. gRPC's own limit of
# 1,000 cancels calls at random in a burst, and a cancelled call says nothing about a retry.
MAX_PENDING_CALLS = 4 * MAX_STREAMS_PER_CONNECTION
# How long a call may wait for a handler to take it, in seconds. gRPC's own limit of 30 s cancels
# what a burst on a busy machine has queued; here only a caller's own deadline ends a call.
MAX_PENDING_S = 24 * 3600
# Headers of a call. One number for both of gRPC's limits: between them it refuses at random.
MAX_METADATA_BYTES = 16 * 1024

# No maximum age of connections: an answer may stream for as long as it likes.
SERVER_OPTIONS = (
    # With SO_REUSEPORT a second router would start on a taken port and steal half the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.max_send_message_length", MAX_BODY_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_S),
    # A client whose host vanished is noticed, and its requests end, within 80 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client may ping this often; one that does it more often is cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
