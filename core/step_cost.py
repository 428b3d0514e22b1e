"""What a step has to compute and to read, for the use that is made of a device (MFU, MBU).

FLOPs: two for each weight and row (the head only for tokens that are followed by a draw), and four
for each query and key of a head. Bytes: the weights once, the K and V of every context, and those
that the step writes. Activations are left out, as is usual (Chowdhery et al., "PaLM", 2022,
appendix B, for MFU). Pure. Does not cover: how fast a device is (``core.peak_rates``).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.step import StepPlan


@dataclass(frozen=True, slots=True)
class StepCost:
    """``flops`` and ``bytes`` of all ranks of a replica together."""

    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CostModel:
    """``layer_weights``, ``head_weights``: numbers in the matrices; ``head_size``: of all query
    heads together, ``kv_size``: of K and V of all KV heads; ``itemsize``: bytes of a number.
    ``layers_of_window``: how many layers attend to so many tokens (None: to all)."""

    layer_weights: int
    head_weights: int
    head_size: int
    kv_size: int
    itemsize: int
    layers_of_window: tuple[tuple[int | None, int], ...]

    def of(self, plan: StepPlan) -> StepCost:
        all_layers = sum(layers for _, layers in self.layers_of_window)
        windowed = [(w, layers) for w, layers in self.layers_of_window if w is not None]
        full_layers = all_layers - sum(layers for _, layers in windowed)
        rows = draws = pairs = context = 0
        for piece in plan.slices:
            start, count = piece.start, len(piece.tokens)
            rows += count
            draws += bool(piece.samples)
            # As `seen_pairs` and `read_context` without a window: this runs for every sequence.
            pairs += full_layers * (count * start + count * (count + 1) // 2)
            context += full_layers * start
            for window, layers in windowed:
                pairs += layers * seen_pairs(start, count, window)
                context += layers * read_context(start, window)
        products = 2 * (rows * self.layer_weights + draws * self.head_weights)
        weights = self.layer_weights + (self.head_weights if draws else 0)
        return StepCost(
            flops=products + 4 * pairs * self.head_size,
            bytes=(weights + self.kv_size * (context + rows * all_layers)) * self.itemsize,
        )


def seen_pairs(start: int, count: int, window: int) -> int:
    """(query, key) pairs of one layer: the token at i sees min(i + 1, window) tokens."""
    growing = min(count, max(0, window - start))
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * window


def read_context(start: int, window: int) -> int:
    """Tokens before the slice whose K and V it reads in one layer."""
    return min(start, window - 1)
