"""Names of the dtypes that a model and its KV cache may have, and what torch calls them."""

from __future__ import annotations

import torch

from core.errors import InvalidField

_BY_NAME = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def torch_dtype(name: str) -> torch.dtype:
    """Raises InvalidField for a name that is not supported."""
    if name not in _BY_NAME:
        raise InvalidField("dtype", name, f"must be one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
