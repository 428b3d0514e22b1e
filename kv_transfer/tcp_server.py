"""P's side of KV blocks over TCP: sends blocks of its pool to decode workers that it invited.

Covers: the part of each block that a peer wants, limits on what is read and on what is under way: a
connection carries one request at a time, straight from the pool to a peer that takes it straight
into its own. P only ever reads its pool here. A block that moves on while it is sent is found by
D's checksum; that is rare, for P keeps announced blocks until D has them.
Does not cover: who may connect (``kv_transfer.token_listener``), the bytes of the messages
(``kv_transfer.tcp_wire``), D's side (``kv_transfer.tcp_source``).
"""

from __future__ import annotations

import time

from core.tls_files import TlsFiles
from core.transfer_plan import Runs
from kv_transfer import tcp_wire as wire
from kv_transfer.iovecs import over, over_parts
from kv_transfer.regions import PoolBytes
from kv_transfer.tcp_channel import Channel, receive_bytes, send_bytes
from kv_transfer.token_listener import Admitted, TokenListener
from kv_transfer.transport import Generations

# D gives a copy up earlier (`kv_transfer.tcp_source`).
_ANSWER_LIMIT_S = 20.0


class TcpServer(TokenListener):
    """Listens on ``host``, any free port."""

    def __init__(
        self,
        host: str,
        pool: PoolBytes,
        generations: Generations,
        tls: TlsFiles | None = None,
    ) -> None:
        """``tls``: take only peers with a certificate; None: in the clear."""
        self._pool = pool
        self._generations = generations
        # Peers may come from here on.
        super().__init__(host, "tcp", self._send_blocks, tls)

    def _send_blocks(self, peer: Admitted) -> None:
        runs = self._wanted_part(peer)
        while True:
            peer.channel.wait_readable()
            self._answer(peer.channel, runs)

    def _wanted_part(self, peer: Admitted) -> Runs:
        """The part of each block that the peer wants; as many known bytes are its self-test."""
        channel, deadline = peer.channel, peer.deadline
        count = wire.read_part_header(receive_bytes(channel, wire.PART_HEADER_BYTES, deadline))
        part = receive_bytes(channel, count * wire.RUN_BYTES, deadline)
        runs = wire.read_part(part, self._pool.shape[1])
        send_bytes(channel, peer.known_bytes(int(runs[:, 1].sum())), deadline)
        return runs

    def _answer(self, channel: Channel, runs: Runs) -> None:
        """One request. Raises ``OSError`` at the end of the connection, whatever ended it."""
        deadline = time.monotonic() + _ANSWER_LIMIT_S
        count, number = wire.read_request_header(
            receive_bytes(channel, wire.HEADER_BYTES, deadline)
        )
        pieces = wire.read_pieces(receive_bytes(channel, count * wire.PIECE_BYTES, deadline))
        present = wire.find_present(pieces, self._generations)
        parts = over_parts(self._pool, pieces["block_id"][present], runs)
        channel.send(over(wire.pack_answer(number, present)) + parts, deadline)
