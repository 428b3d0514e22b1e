"""The least time that a prompt or a decode step can take on a machine of given rates. Pure.

    floor = max(bytes that must be read / read bandwidth, FLOPs / rate of matrix products)

Bytes: each weight matrix once, and for decode the K and V of every sequence's context. FLOPs: two
for each weight and token (the head only for tokens that are followed by a draw), and attention's
Q·K and P·V over the context that a token sees. The model of Williams, Waterman and Patterson,
"Roofline" (CACM 52(4), 2009). It holds for models far larger than the last-level cache: weights
that stay in the cache are not read from memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What the machine reached with so many threads: bytes/s of reads, FLOP/s of matrix products.

    ``read_by`` and ``product_by`` say in words how.
    """

    read_bytes_per_s: float
    flops_per_s: float
    read_by: str
    product_by: str

    def floor_s(self, read_bytes: float, flops: float) -> float:
        return max(read_bytes / self.read_bytes_per_s, flops / self.flops_per_s)

    def best(self, other: MachineRates) -> MachineRates:
        """The faster of two measurements, rate by rate."""
        read = max(self, other, key=lambda rates: rates.read_bytes_per_s)
        product = max(self, other, key=lambda rates: rates.flops_per_s)
        return MachineRates(
            read.read_bytes_per_s, product.flops_per_s, read.read_by, product.product_by
        )


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What the model ``config`` has to read and compute with numbers of ``itemsize`` bytes."""

    config: ModelConfig
    itemsize: int

    @property
    def layer_weights(self) -> int:
        """Numbers in all matrices of all layers."""
        c = self.config
        attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
        return c.num_layers * (attention + 3 * c.hidden_size * c.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Of a step that draws a token; of the embedding only a few rows are read."""
        return (self.layer_weights + self.head_weights) * self.itemsize

    def prefill_floor_s(self, machine: MachineRates, length: int) -> float:
        """A prompt of ``length`` tokens from nothing to the logits of its first answer token."""
        products = 2 * (length * self.layer_weights + self.head_weights)
        seen = sum(_causal_pairs(length, window) for window in self.config.layer_windows)
        return machine.floor_s(self.weight_bytes, products + self._attention_flops(seen))

    def decode_floor_s(self, machine: MachineRates, batch: int, context: float) -> float:
        """One token of each of ``batch`` sequences that have ``context`` tokens, own included."""
        c = self.config
        seen = sum(context if w is None else min(context, w) for w in c.layer_windows)
        kv_bytes = batch * seen * 2 * c.num_kv_heads * c.head_dim * self.itemsize
        products = 2 * batch * (self.layer_weights + self.head_weights)
        flops = products + self._attention_flops(batch * seen)
        return machine.floor_s(self.weight_bytes + kv_bytes, flops)

    def _attention_flops(self, pairs: float) -> float:
        """``pairs``: of a token and one that it sees, summed over layers."""
        return 4 * pairs * self.config.num_heads * self.config.head_dim


def _causal_pairs(length: int, window: int | None) -> int:
    """How many tokens all tokens of a prompt see together, each itself included."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full
