"""Which compiled function computes an operation: by its dtype, with Python's lock or without.

Does not cover: loading them (``native.library``), when they are used (``kernels.dispatch``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from native.library import choice, library

# A call with fewer takes less than about 20 µs.
_BRIEF_ELEMENTS = 1 << 16


def by_dtype(name: str, dtype: torch.dtype, elements: int | None = None) -> Callable[..., None]:
    """The function ``name`` for bfloat16 or float32. `library` says when there is none.

    ``elements``: of a function with some work for each. If few it is called with Python's lock
    kept: to win that back from a busy event loop may take a thousand times as long as the work.
    """
    found = choice()
    brief = elements is not None and elements < _BRIEF_ELEMENTS
    suffix = "bf16" if dtype is torch.bfloat16 else "f32"
    function: Callable[..., None] = getattr(
        (found.brief if brief else found.library) or library(), f"crossdock_{name}_{suffix}"
    )
    return function
