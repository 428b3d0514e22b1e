"""Which tile sizes of the attention kernels are tried on a GPU, by what a row of the pool takes.

A configuration has to fit into the shared memory of sm80 (163 KiB), the least that is supported;
the tests compile every one. The fastest is found by `triton.autotune` when a kernel first runs with
a head size, group, block size and dtype on a GPU (`kernels.tune_attention` does that ahead of
serving), and kept on disk in Triton's cache folder (TRITON_CACHE_DIR). In Triton's interpreter
there is nothing to measure: one small configuration serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

_Table = Mapping[int, tuple[tuple[int, ...], ...]]


# (tokens of a tile, warps, stages), by bytes of a padded row of K. Fewer than 3 stages do not fetch
# block ids ahead; 5 have two tiles of K and V under way instead of one.
_DECODE = {
    128: ((64, 4, 5), (128, 4, 3), (64, 2, 3)),
    256: ((64, 4, 3), (64, 4, 5), (128, 8, 3)),
    512: ((32, 4, 5), (64, 8, 3)),
}
# (rows of queries, tokens of a tile, warps, stages), by bytes of a padded row of K.
_PREFILL = {
    128: ((128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3)),
    256: ((128, 64, 8, 3), (128, 64, 8, 5), (128, 128, 8, 3)),
    512: ((128, 32, 8, 3), (64, 64, 8, 3)),
}
# Products of float32 take no tensor cores, and spill registers unless tiles are small.
_DECODE_FLOAT32 = {256: ((64, 4, 3),), 512: ((32, 8, 3),), 1024: ((16, 8, 3),)}
_PREFILL_FLOAT32 = {256: ((32, 32, 8, 3),), 512: ((32, 16, 8, 3),), 1024: ((16, 16, 8, 3),)}


def decode_configs() -> list[triton.Config]:
    """What `triton.autotune` of the decode kernel is given; `fitting_decode` picks from it."""
    if triton.knobs.runtime.interpret:
        return [_decode(32, 4, 1)]
    return _distinct(_decode, _DECODE, _DECODE_FLOAT32)


def prefill_configs() -> list[triton.Config]:
    """What `triton.autotune` of the prefill kernel is given; `fitting_prefill` picks from it."""
    if triton.knobs.runtime.interpret:
        return [_prefill(32, 32, 4, 1)]
    return _distinct(_prefill, _PREFILL, _PREFILL_FLOAT32)


def fitting_decode(
    configs: list[triton.Config], arguments: dict[str, Any], **constants: Any
) -> list[triton.Config]:
    """Those of ``configs`` made for this head size and dtype; as ``early_config_prune``."""
    table = _DECODE_FLOAT32 if arguments["pool"].dtype is torch.float32 else _DECODE
    fitting = [_decode(*sizes) for sizes in table[_row_bytes(arguments, constants)]]
    return [config for config in configs if config in fitting]


def fitting_prefill(
    configs: list[triton.Config], arguments: dict[str, Any], **constants: Any
) -> list[triton.Config]:
    """Those of ``configs`` made for this head size and dtype; as ``early_config_prune``."""
    table = _PREFILL_FLOAT32 if arguments["pool"].dtype is torch.float32 else _PREFILL
    fitting = [_prefill(*sizes) for sizes in table[_row_bytes(arguments, constants)]]
    return [config for config in configs if config in fitting]


def _row_bytes(arguments: dict[str, Any], constants: dict[str, Any]) -> int:
    # Head sizes under 64 take the tiles of 64.
    return int(max(64, constants["PADDED_DIM"]) * arguments["pool"].element_size())


def _distinct(make: Callable[..., triton.Config], *tables: _Table) -> list[triton.Config]:
    sizes = (sizes for table in tables for row in table.values() for sizes in row)
    return [make(*s) for s in dict.fromkeys(sizes)]


def _decode(tile: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"TILE": tile}, num_warps=warps, num_stages=stages)


def _prefill(rows: int, tile: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"ROWS": rows, "TILE": tile}, num_warps=warps, num_stages=stages)
