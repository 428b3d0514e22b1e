"""KV blocks through shared memory: D maps P's pool read-only and copies out of it.

Covers: passing the descriptor of P's pool over a Unix socket (SCM_RIGHTS), the self-test that
tells whether both sides really see the same memory, copying with generation and checksum checks.
A descriptor instead of a name: nothing stays behind when a process is killed.
Does not cover: when to copy what (``core.lease``).
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from core.errors import Incompatible
from core.kv_pool_layout import PoolLayout
from core.lease_events import PieceCopy
from kv_transfer.regions import PartCopier, PoolBytes, checksum_part
from kv_transfer.transport import SHM, CopyResult, EdgeTarget

_CONNECT_TIMEOUT_S = 5.0
_ACCEPT_PAUSE_S = 0.1
# A copy takes another thread only if each has this much to do: waking one costs 50 µs.
_BYTES_PER_THREAD = 2 << 20
_PEER_CREDENTIALS = struct.Struct("3i")


class PoolExporter:
    """P's side: hands a read-only descriptor of its pool to processes of the same user.

    Listens on an abstract Unix socket, which has no file to leave behind.
    """

    def __init__(self, pool_fd: int) -> None:
        # Reopened read-only, so that a peer can't map it writable.
        self._fd = os.open(f"/proc/self/fd/{pool_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.socket_path = f"@crossdock-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(_address(self.socket_path))
        self._listener.listen(128)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="shm-export", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                # Out of descriptors, most likely: peers try again, and so do we.
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        _, uid, _ = _PEER_CREDENTIALS.unpack(raw)
        if uid != os.getuid():
            return
        try:
            socket.send_fds(connection, [b"\0"], [self._fd])
        except OSError:
            # The peer went away; it will see its own end of the connection fail.
            return

    def close(self) -> None:
        self._closing = True
        # shutdown() wakes accept(), close() alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        os.close(self._fd)


class SharedMemorySource:
    """D's side: the pool of one rank of P, mapped read-only."""

    transport = SHM

    def __init__(
        self,
        socket_path: str,
        nonce: int,
        source: PoolLayout,
        target: EdgeTarget,
        threads: int | None = None,
    ) -> None:
        """Maps the pool and tests the way. Raises `Incompatible` if it is not P's memory.

        ``source``: how the pool of P's rank lies in its memory. ``threads``: how many copy at once;
        None: two where this process may use two cores.
        """
        self._target = target
        self._aborted = False
        self._threads = threads or min(2, len(os.sched_getaffinity(0)))
        fd = receive_descriptor(socket_path)
        try:
            self._map = map_read_only(fd, source.total_bytes)
        finally:
            os.close(fd)
        if not self._passes_test(nonce, source):
            self._map.close()
            raise Incompatible(
                "self-test failed: this memory is not the prefill worker's pool",
                reason="SHM_SELF_TEST_FAILED",
            )
        blocks = self._mapped_blocks(source.blocks_offset, source.num_blocks, source.block_bytes)
        self._num_blocks = source.num_blocks
        self._copier: PartCopier | None = PartCopier(blocks, target.blocks, target.plan)
        self._generations = np.frombuffer(
            self._map, np.uint64, source.num_blocks, source.generations_offset
        )
        self._helpers = ThreadPoolExecutor(max(1, self._threads - 1), thread_name_prefix="kv-shm")

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        # Each thread takes the next piece: taking from a deque is atomic.
        waiting = deque(copies)
        helping = [
            self._helpers.submit(self._copy_next, waiting) for _ in range(self._helpers_for(copies))
        ]
        try:
            landed = self._copy_next(waiting)
        finally:
            wait(helping)
        landed.update(*(helper.result() for helper in helping))
        good = tuple(item.index for item in copies if item.index in landed)
        bad = tuple(item.index for item in copies if item.index not in landed)
        return CopyResult(good, bad)

    def abort(self) -> None:
        self._aborted = True

    def close(self) -> None:
        self._helpers.shutdown(wait=True)
        # The arrays keep the mapping alive; it is unmapped when the last of them is gone.
        self._copier = None
        self._generations = np.empty(0, np.uint64)
        self._map.close()

    def _helpers_for(self, copies: Sequence[PieceCopy]) -> int:
        size = len(copies) * self._target.plan.block_bytes
        return max(0, min(self._threads, size // _BYTES_PER_THREAD) - 1)

    def _copy_next(self, waiting: deque[PieceCopy]) -> set[int]:
        """Until none waits; prompt block indices of those that landed and are intact."""
        landed: set[int] = set()
        copier = self._copier
        while copier is not None and not self._aborted:
            try:
                item = waiting.popleft()
            except IndexError:
                break
            if self._copy_one(copier, item):
                landed.add(item.index)
        return landed

    def _copy_one(self, copier: PartCopier, item: PieceCopy) -> bool:
        piece = item.piece
        if not 0 <= piece.block_id < self._num_blocks:
            return False
        copier.copy(piece.block_id, item.destination)
        # Read after the copy: a block that P gave to someone else in between has moved on.
        # Generations only grow, so this one check also covers the time before the copy.
        if int(self._generations[piece.block_id]) != piece.generation:
            return False
        return self._target.matches(piece, copier.checksum(item.destination))

    def _passes_test(self, nonce: int, source: PoolLayout) -> bool:
        """The nonce is there, and a known block arrives over this edge as blocks will."""
        seen = int(np.frombuffer(self._map, np.uint64, 1, source.nonce_offset)[0])
        plan = self._target.plan
        known = np.frombuffer(source.probe(nonce), np.uint8)
        landed = np.zeros((1, plan.destination_layout.block_bytes), np.uint8)
        probe = self._mapped_blocks(source.probe_offset, 1, source.block_bytes)
        PartCopier(probe, landed, plan).copy(0, 0)
        arrived = checksum_part(landed[0], plan.destination_runs)
        return seen == nonce and arrived == checksum_part(known, plan.source_runs)

    def _mapped_blocks(self, offset: int, count: int, block_bytes: int) -> PoolBytes:
        data = np.frombuffer(self._map, np.uint8, count * block_bytes, offset)
        return data.reshape(count, block_bytes)


def receive_descriptor(socket_path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        try:
            connection.connect(_address(socket_path))
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError as error:
            raise Incompatible(
                f"the memory can't be reached: {error}; the two workers are not on one host or "
                "not in one network namespace",
                reason="SHM_UNREACHABLE",
            ) from error
    if not descriptors:
        raise Incompatible(
            "the prefill worker refused its memory: it runs as another user",
            reason="SHM_REFUSED",
        )
    return descriptors[0]


def map_read_only(fd: int, size: int) -> mmap.mmap:
    if os.fstat(fd).st_size != size:
        raise Incompatible(
            f"shared pool has {os.fstat(fd).st_size} bytes, expected {size}",
            reason="SHM_SIZE_DIFFERS",
        )
    # Populated at once, so that the first copies don't pay for page faults.
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    return mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ)


def _address(socket_path: str) -> str:
    """`@name` is how abstract sockets are written; the kernel wants a leading NUL."""
    return f"\0{socket_path[1:]}"
