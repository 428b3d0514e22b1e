"""What has to be put right in Triton's interpreter before kernels can be tested in it."""

from __future__ import annotations

from typing import Any


def repair_bfloat16_dot() -> None:
    """Makes ``tl.dot`` of bfloat16 right in this process's interpreter.

    Triton 3.9 keeps bfloat16 as the uint16 of its bits there, and multiplies those as integers. The
    products of two bfloat16 are exact in float32, so this is what a GPU computes.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    original = InterpreterBuilder.create_dot
    if original.__name__ != "create_dot":
        return

    def repaired(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (
            self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return original(self, a, b, *rest)

    InterpreterBuilder.create_dot = repaired
