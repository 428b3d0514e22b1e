"""``y = x Wᵀ + b`` with the weight packed once for the CPU's matrix kernels.

oneDNN keeps the weight in the layout its GEMM reads. Measured over all matmuls of a 135M model on
one core, against ``F.linear``: bfloat16 18 instead of 30 ms at one row, 20 instead of 38 at eight;
float32 33 instead of 43 and 40 instead of 70. Elsewhere (no oneDNN, other devices and dtypes) this
is ``F.linear`` itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_PACKED_DTYPES = (torch.float32, torch.bfloat16)
# Rows of x that the packed layout is chosen for; measured to be as good for 1 row as for 512.
_ROWS_HINT = 16


class Linear:
    """A weight [out, in], and a bias [out] or none, of one dtype.

    Call with x [T, in] of that dtype to get [T, out].
    """

    __slots__ = ("_bias", "_packed", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed = _can_pack(weight)
        self._bias = bias
        self._weight = weight.contiguous()
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, _ROWS_HINT)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same, written out."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in _PACKED_DTYPES:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
