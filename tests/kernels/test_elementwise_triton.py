"""The Triton kernels of norm, rotation and gate: interpreted against references, and compiled."""

from __future__ import annotations

import pytest
from cubin import CAPABILITIES, POINTERS, run_python
from elementwise_triton_cases import HEAD_DIMS, WIDTHS

_OF_A_DTYPE = 3 * len(WIDTHS) + 2 * len(HEAD_DIMS)


@pytest.mark.triton
def test_the_kernels_do_in_the_interpreter_what_the_references_say() -> None:
    run_python("import elementwise_triton_cases as cases; cases.check_kernels()", interpret=True)


@pytest.mark.triton
def test_the_kernels_of_bfloat16_compile() -> None:
    assert compiled("cases.compile_kernels(90, ('bfloat16',))") == _OF_A_DTYPE


@pytest.mark.cubins
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_all_kernels_compile_for_gpus(capability: int) -> None:
    assert compiled(f"cases.compile_kernels({capability})") == len(POINTERS) * _OF_A_DTYPE


def compiled(program: str) -> int:
    """How many cubins came out."""
    text = run_python(f"import elementwise_triton_cases as cases; {program}", interpret=False)
    return text.count("registers")
