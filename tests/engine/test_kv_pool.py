"""The shared memory of a pool, as its owner and as another mapping of it see it."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from core.block_pool import BlockPool
from core.errors import InvalidField
from core.kv_layout import KVLayout
from core.kv_pool_layout import PoolLayout
from core.step import BlockCopy
from engine.kv_pool import KVPool
from engine.memory import available_memory

LAYOUT = KVLayout(num_layers=2, num_kv_heads=3, head_dim=4, block_size=5, dtype="bfloat16")


def test_tensor_and_bytes_are_the_same_memory() -> None:
    pool = KVPool.create(LAYOUT, 7, "cpu")
    assert pool.tensor.shape == (7, *LAYOUT.block_shape)
    assert pool.tensor.dtype is torch.bfloat16
    assert pool.block_bytes_view is not None
    assert pool.block_bytes_view.shape == (7, LAYOUT.block_bytes)
    pool.tensor[3] = 1.0
    assert pool.block_bytes_view[3].view(np.uint16).tolist() == [0x3F80] * (LAYOUT.block_bytes // 2)
    pool.block_bytes_view[3] = 0
    assert not bool(pool.tensor.any())
    pool.close()


def test_whole_blocks_are_copied_and_a_source_may_serve_several() -> None:
    pool = KVPool.create(LAYOUT, 5, "cpu")
    assert pool.block_bytes_view is not None
    blocks = pool.block_bytes_view
    blocks[:] = np.random.default_rng(1).integers(0, 256, blocks.shape, np.uint8)
    before = blocks.copy()
    pool.copy_blocks([BlockCopy(1, 0), BlockCopy(1, 4), BlockCopy(3, 2)])
    assert np.array_equal(blocks, before[[1, 1, 3, 3, 1]])
    pool.close()


def test_a_reader_finds_all_parts_and_can_not_write() -> None:
    pool, parts = KVPool.create(LAYOUT, 7, "cpu"), PoolLayout(7, LAYOUT.block_bytes)
    assert pool.fd is not None
    assert pool.size == parts.total_bytes == os.fstat(pool.fd).st_size
    with mmap.mmap(pool.fd, pool.size, prot=mmap.PROT_READ) as memory:
        pool.tensor[6] = 2.0
        pool.generations[:] = range(7)
        block = memory[parts.blocks_offset + 6 * parts.block_bytes :][: parts.block_bytes]
        assert set(np.frombuffer(block, np.uint16)) == {0x4000}
        generations = np.frombuffer(memory[parts.generations_offset :][:56], np.uint64)
        assert generations.tolist() == list(range(7))
        assert int.from_bytes(memory[parts.nonce_offset :][:8], "little") == pool.nonce != 0
        probe = memory[parts.probe_offset :][: LAYOUT.block_bytes]
        assert bytes(probe) == parts.probe(pool.nonce)
    with pytest.raises(PermissionError):
        mmap.mmap(pool.fd, pool.size)
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, 4096)
    pool.close()


def test_the_block_pool_writes_generations_where_readers_look() -> None:
    pool = KVPool.create(LAYOUT, 4, "cpu")
    blocks = BlockPool(4, LAYOUT.block_size, pool.generations)
    taken = blocks.allocate(2)
    assert taken is not None
    assert bool((pool.generations[taken] == blocks.generation(taken)).all())
    pool.close()
    del blocks  # it looks into the mapping, and has cycles
    gc.collect()


def test_every_page_is_in_memory_from_the_start() -> None:
    pool = KVPool.create(LAYOUT, 500, "cpu")
    assert pool.fd is not None
    assert os.fstat(pool.fd).st_blocks * 512 >= pool.size
    pool.close()


def test_nonces_differ() -> None:
    pools = [KVPool.create(LAYOUT, 1, "cpu") for _ in range(3)]
    assert len({pool.nonce for pool in pools}) == 3
    for pool in pools:
        pool.close()


def test_closing_frees_descriptor_and_memory_and_may_be_repeated() -> None:
    pool = KVPool.create(LAYOUT, 2, "cpu")
    fd = pool.fd
    assert fd is not None
    pool.close()
    pool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert "crossdock-kv" not in Path("/proc/self/maps").read_text()


def test_too_many_blocks_are_refused_before_the_machine_runs_out() -> None:
    with pytest.raises(InvalidField, match=r"num_blocks = 1000000000: needs [\d,]+ bytes"):
        KVPool.create(LAYOUT, 10**9, "cpu")
    with pytest.raises(InvalidField, match="at least 1"):
        KVPool.create(LAYOUT, 0, "cpu")


def test_memory_is_what_the_machine_has_and_the_cgroup_allows(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert available_memory(meminfo, tmp_path) == 5_120_000
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 5_120_000
    (tmp_path / "memory.max").write_text("3000000\n")
    assert available_memory(meminfo, tmp_path) == 2_000_000
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_a_pool_on_another_device_shares_its_generations_and_not_its_blocks() -> None:
    pool = KVPool.create(LAYOUT, 3, "meta")
    parts = PoolLayout(3, 0)
    assert pool.block_bytes_view is None
    assert pool.tensor.shape == (3, *LAYOUT.block_shape)
    assert (pool.fd is not None, pool.size) == (True, parts.total_bytes)
    pool.generations[:] = (4, 5, 6)
    seen = os.pread(pool.fd or 0, 24, parts.generations_offset)
    assert np.frombuffer(seen, np.uint64).tolist() == [4, 5, 6]
    assert int.from_bytes(os.pread(pool.fd or 0, 8, parts.nonce_offset), "little") == pool.nonce
    pool.close()
