"""``y = x Wᵀ + b`` with the weight packed once for the kernels that read it.

Native (``native/linear.cpp``): near memory speed for few rows, near the rate of the CPU's bfloat16
dot products for many, and a row's result does not depend on how many others there are. Without it
oneDNN's own packing, which takes up to twice as long for few rows (docs/PERFORMANCE.md). CPUs with
matrix units (AMX) get both: only oneDNN uses these, and they pay from some rows on; there the
weight is kept twice, and a bfloat16 row's last bits depend on how many rows there are. Elsewhere
(other devices and dtypes) this is ``F.linear``.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from kernels.compiled import by_dtype
from kernels.dispatch import implementation
from native import library

_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
# Rows of x that oneDNN's layout is chosen for; measured to be as good for 1 row as for 512.
_ROWS_HINT = 16
# From this many rows on matrix units are quicker than dot products.
_ROWS_FOR_TILES = 16
# Columns of a panel in ``native/linear.cpp``, and stripes by ``native/stripes.h``.
_PANEL = 32
_STRIPES, _STRIPE_GROUP = 16, 512


class _Multiply(Protocol):
    def __call__(self, x: torch.Tensor, wide: bool) -> torch.Tensor: ...


class Linear:
    """A weight [out, in], and a bias [out] or none, of one dtype."""

    __slots__ = ("_few", "_many")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        weight = weight.contiguous()
        self._few = self._many = _multiply(weight, bias)
        if isinstance(self._few, _Native) and _has_tiles(weight):
            self._many = _OneDNN(weight, bias)

    def __call__(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """x [T, in] of the weight's dtype, to [T, out].

        ``wide``: the result in float32, and not rounded to a narrower dtype on the way where the
        implementation can do without.
        """
        return (self._few if x.shape[0] < _ROWS_FOR_TILES else self._many)(x, wide)

    def with_maxima(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``wide``, and of each row's stripes the largest results, float32 [T, groups, 16].

        A stripe: the results in a group of 512 neighbours (the last may have fewer) that are a
        multiple of 16 apart; NaN if one of them is, -inf if there are none. Finding them while
        they are at hand saves `kernels.sampling` a pass over all of them. None where the
        implementation does not tell.
        """
        multiply = self._few if x.shape[0] < _ROWS_FOR_TILES else self._many
        if not isinstance(multiply, _Native):
            return multiply(x, True), None
        groups = -(-multiply.columns // _STRIPE_GROUP)
        maxima = torch.empty(x.shape[0], groups, _STRIPES, dtype=torch.float32)
        return multiply(x, True, maxima), maxima


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same, written out."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def _multiply(weight: torch.Tensor, bias: torch.Tensor | None) -> _Multiply:
    # The native kernel takes bfloat16 in pairs.
    if implementation(weight) == "native" and weight.shape[1] % 2 == 0:
        return _Native(weight, bias)
    return _OneDNN(weight, bias) if _onednn_packs(weight) else _Plain(weight, bias)


class _Native:
    __slots__ = ("_bias", "_depth", "_function", "_packed", "columns")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._function = by_dtype("linear", weight.dtype)
        self.columns, self._depth = weight.shape
        self._bias = None if bias is None else bias.contiguous()
        panels = -(-self.columns // _PANEL)
        self._packed = torch.empty(panels, _PANEL * self._depth, dtype=weight.dtype)
        by_dtype("linear_pack", weight.dtype)(
            weight.data_ptr(), self._packed.data_ptr(), self.columns, self._depth
        )

    def __call__(
        self, x: torch.Tensor, wide: bool, maxima: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x.contiguous()
        rows = x.shape[0]
        y = torch.empty(rows, self.columns, dtype=torch.float32 if wide else x.dtype)
        self._function(
            x.data_ptr(),
            self._packed.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            y.data_ptr(),
            rows,
            self.columns,
            self._depth,
            wide,
            None if maxima is None else maxima.data_ptr(),
        )
        return y


class _OneDNN:
    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias

    def __call__(self, x: torch.Tensor, wide: bool) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return y.float() if wide else y


class _Plain:
    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor, wide: bool) -> torch.Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y.float() if wide else y


def _has_tiles(weight: torch.Tensor) -> bool:
    return weight.dtype is torch.bfloat16 and library.has_matrix_tiles() and _onednn_packs(weight)


def _onednn_packs(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in _ONEDNN_DTYPES:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
