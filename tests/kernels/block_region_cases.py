"""Pools, regions and ids of all sorts, and what must hold for each: for tests and for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.block_region import BlockRegion, as_words, widest_word, word_runs
from kernels.checksum_blocks import checksum_reference
from kernels.pack_blocks import pack_reference

Pack = Callable[[torch.Tensor, torch.Tensor, BlockRegion, torch.Tensor], None]
Unpack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, BlockRegion], None]
Checksum = Callable[[torch.Tensor, torch.Tensor, BlockRegion], torch.Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Case:
    """``shape`` of the pool, as (blocks, layers, heads, tokens, dim)."""

    shape: tuple[int, int, int, int, int]
    region: BlockRegion
    block_ids: tuple[int, ...]
    dtype: torch.dtype
    seed: int

    def pool(self, device: str = "cpu") -> torch.Tensor:
        blocks, layers, heads, tokens, dim = self.shape
        count = blocks * layers * 2 * heads * tokens * dim * self.dtype.itemsize
        noise = np.random.default_rng(self.seed).integers(0, 256, count, dtype=np.uint8)
        memory = torch.from_numpy(noise).to(device).view(self.dtype)
        return memory.view(blocks, layers, 2, heads, tokens, dim)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    # A head's part is a multiple of 4 bytes for every dtype: what a GPU's checksum asks for.
    sizes = st.integers(1, 4)
    blocks, layers, heads, tokens = (draw(sizes) for _ in range(4))
    dim = 4 * draw(sizes)
    ids = draw(st.lists(st.integers(0, blocks - 1), unique=True, min_size=1))
    region = BlockRegion(draw(_part_of(layers)), draw(_part_of(heads)))
    dtype = draw(st.sampled_from(DTYPES))
    return Case((blocks, layers, heads, tokens, dim), region, tuple(ids), dtype, draw(sizes))


def _part_of(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(0, size - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, size))
    )


CASES = _cases()
# More words than one tile holds, in runs that do not divide it.
LARGE = Case((3, 5, 3, 16, 64), BlockRegion((1, 4), (1, 3)), (2, 0), torch.bfloat16, 1)


def check_case(
    case: Case, pack: Pack, unpack: Unpack, checksum: Checksum, device: str = "cpu"
) -> None:
    """Raises AssertionError unless the three agree with the references, and touch nothing else."""
    pool, ids = case.pool(device), torch.tensor(case.block_ids, device=device)
    expected = pack_reference(pool, ids, case.region).to(device)
    staging = torch.zeros_like(expected)
    pack(pool, ids, case.region, staging)
    assert torch.equal(staging, expected)

    target = torch.zeros_like(pool.view(torch.uint8)).view(case.dtype)
    unpack(expected, target, ids, case.region)
    assert torch.equal(pack_reference(target, ids, case.region).to(device), expected)
    case.region.of(target.view(torch.uint8))[ids] = 0
    assert not target.view(torch.uint8).any()

    sums = checksum(pool, ids, case.region).cpu().numpy().view(np.uint64)
    assert sums.tolist() == [checksum_reference(bytes(row)) for row in expected.cpu().numpy()]


def check_interpreted_kernels() -> None:
    """In a process with TRITON_INTERPRET=1."""
    check_case(LARGE, pack_with_triton, unpack_with_triton, checksum_with_triton)

    @hypothesis.settings(max_examples=60, deadline=None, database=None)
    @given(CASES)
    def check(case: Case) -> None:
        check_case(case, pack_with_triton, unpack_with_triton, checksum_with_triton)

    check()


def pack_with_triton(
    pool: torch.Tensor, ids: torch.Tensor, region: BlockRegion, staging: torch.Tensor
) -> None:
    _move(pool, ids, region, staging, scatter=False)


def unpack_with_triton(
    staging: torch.Tensor, pool: torch.Tensor, ids: torch.Tensor, region: BlockRegion
) -> None:
    _move(pool, ids, region, staging, scatter=True)


def checksum_with_triton(
    pool: torch.Tensor, ids: torch.Tensor, region: BlockRegion
) -> torch.Tensor:
    from kernels.checksum_blocks_triton import launch_checksum

    return launch_checksum(as_words(pool, 4), ids, word_runs(pool, region, 4))


def _move(
    pool: torch.Tensor,
    ids: torch.Tensor,
    region: BlockRegion,
    staging: torch.Tensor,
    scatter: bool,
) -> None:
    from kernels.pack_blocks_triton import launch_pack

    word = widest_word(pool)
    runs = word_runs(pool, region, word)
    launch_pack(as_words(pool, word), ids, runs, as_words(staging, word), scatter)


def compile_kernels(capability: int) -> None:
    """Compiles all kernels for a GPU of this capability (90: sm90) and prints what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernels.checksum_blocks_triton import checksum_kernel
    from kernels.pack_blocks_triton import pack_kernel

    target = GPUTarget("cuda", capability, 32)
    sizes = dict.fromkeys(("block_words", "first", "stride", "length", "row_words"), "i32")
    # The checksum's mix has keys of 64 bits.
    constants = {"GOLDEN": 0x9E3779B97F4A7C15, "MIX_1": 0xBF58476D1CE4E5B9}
    constants |= {"MIX_2": 0x94D049BB133111EB, "TILE": 1024}
    for word in ("*i64", "*i32", "*u8"):
        signature = {"pool": word, "block_ids": "*i64", "staging": word} | sizes
        signature |= {"SCATTER": "constexpr", "TILE": "constexpr"}
        source = ASTSource(pack_kernel, signature, {"SCATTER": word == "*i64", "TILE": 1024})
        print("pack", word, *_binaries(triton.compile(source, target=target).asm))
    signature = {"pool": "*i32", "block_ids": "*i64", "sums": "*i64"} | sizes
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(checksum_kernel, signature, constants)
    print("checksum", *_binaries(triton.compile(source, target=target).asm))


def _binaries(assembly: dict[str, object]) -> list[str]:
    return [name for name in assembly if name == "cubin"]
