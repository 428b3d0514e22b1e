"""Packing, unpacking and checksums of regions of blocks: every path against the plain reference.

The Triton kernels run in Triton's interpreter, in a process of their own: whether a kernel is
interpreted is decided when it is loaded, and the compiler test needs it compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from block_region_cases import CASES, Case, check_case
from hypothesis import given
from hypothesis import strategies as st

from kernels.block_region import BlockRegion
from kernels.checksum_blocks import checksum_blocks, checksum_reference, checksum_rows
from kernels.pack_blocks import pack_blocks, unpack_blocks

CAPABILITIES = (80, 90, 100)


@given(CASES)
def test_on_the_cpu_packing_and_checksums_are_what_the_reference_says(case: Case) -> None:
    check_case(case, pack_blocks, unpack_blocks, checksum_blocks)


@pytest.mark.triton
def test_the_triton_kernels_do_the_same_in_the_interpreter() -> None:
    run_python("import block_region_cases as cases; cases.check_interpreted_kernels()", "1")


@pytest.mark.triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_triton_kernels_compile_for_gpus(capability: int) -> None:
    text = run_python(
        f"import block_region_cases as cases; cases.compile_kernels({capability})", "0"
    )
    assert text.count("cubin") == 4


def run_python(program: str, interpret: str) -> str:
    """Runs a program with the tests' own paths; its output."""
    environment = os.environ | {
        "TRITON_INTERPRET": interpret,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


rows = st.binary(min_size=1, max_size=70)


@given(rows)
def test_the_checksum_is_its_formula(row: bytes) -> None:
    assert checksum_of(row) == checksum_reference(row)


@given(rows, st.data())
def test_a_flipped_bit_is_found(row: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(row) - 1))
    flipped = bytearray(row)
    flipped[bit // 8] ^= 1 << bit % 8
    assert checksum_of(bytes(flipped)) != checksum_of(row)


@given(st.lists(st.binary(min_size=4, max_size=4), min_size=2, max_size=20), st.data())
def test_words_that_changed_places_are_found(words: list[bytes], data: st.DataObject) -> None:
    i, j = (data.draw(st.integers(0, len(words) - 1)) for _ in range(2))
    swapped = list(words)
    swapped[i], swapped[j] = words[j], words[i]
    same = checksum_of(b"".join(swapped)) == checksum_of(b"".join(words))
    assert same == (words[i] == words[j])


@given(st.integers(1, 20), st.integers(1, 20))
def test_zeros_cut_off_or_added_are_found(words: int, others: int) -> None:
    same = checksum_of(bytes(4 * words)) == checksum_of(bytes(4 * others))
    assert same == (words == others)


@pytest.mark.parametrize(
    ("region", "why"),
    [
        (BlockRegion((0, 3), (0, 1)), "layers 0 to 3"),
        (BlockRegion((0, 1), (1, 1)), "heads 1 to 1"),
    ],
)
def test_a_region_outside_the_pool_is_refused(region: BlockRegion, why: str) -> None:
    pool = torch.zeros(2, 2, 2, 2, 2, 2)
    with pytest.raises(ValueError, match=why):
        checksum_blocks(pool, torch.tensor([0]), region)


def test_staging_of_another_size_and_a_pool_with_gaps_are_refused() -> None:
    pool, region, ids = (
        torch.zeros(2, 2, 2, 2, 2, 2),
        BlockRegion((0, 1), (0, 1)),
        torch.tensor([0]),
    )
    with pytest.raises(ValueError, match="staging is"):
        pack_blocks(pool, ids, region, torch.zeros(1, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        checksum_blocks(pool[:, :, :, :, ::2], ids, region)


@pytest.mark.thorough
def test_a_cpu_never_loads_triton() -> None:
    program = (
        "import sys, torch\n"
        "from kernels.block_region import BlockRegion\n"
        "from kernels.checksum_blocks import checksum_blocks\n"
        "pool, region = torch.zeros(1, 1, 2, 1, 1, 4), BlockRegion((0, 1), (0, 1))\n"
        "checksum_blocks(pool, torch.tensor([0]), region)\n"
        "print('triton' in sys.modules)"
    )
    assert run_python(program, "0").strip() == "False"


def checksum_of(row: bytes) -> int:
    return int(checksum_rows(np.frombuffer(row, np.uint8)[None])[0])
