"""A latency profile from a roofline, for hardware that one doesn't have.

A step's matrix products take as long as reading the weights or as their arithmetic, whichever is
longer (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009), plus the sums over tensor
ranks, the way between stages, and a fixed part. Attention over prompts is arithmetic, attention of
decoding sequences is reading their KV. Labelled "modelled": a measured profile is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from core.errors import InvalidField
from core.kv_layout import DTYPE_BYTES
from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    TransferModel,
    TransferProfile,
    femtoseconds,
)
from core.shards import ParallelShape
from tuner.profile.hardware import HardwareSpec
from tuner.profile.model_shape import ModelShape

SHAPES = (
    *(ParallelShape(tensor, 1) for tensor in (1, 2, 4, 8)),
    *(ParallelShape(tensor, 2) for tensor in (1, 2, 4, 8)),
)
# Of a tensor-parallel layer: after attention and after the MLP.
_SUMS_PER_LAYER = 2
# Read and written numbers of one token in one layer that are not weights: norms, residual, gate.
_ACTIVATIONS_PER_HIDDEN = 16


@dataclass(frozen=True, slots=True)
class Roofline:
    """``model`` on ``hardware`` with numbers of ``itemsize`` bytes."""

    hardware: HardwareSpec
    model: ModelShape
    itemsize: int

    def kv_tokens(self, shape: ParallelShape) -> int:
        """Tokens whose KV fits beside the weights; 0 if not even those fit."""
        hw, model = self.hardware, self.model
        memory = hw.memory * hw.memory_share * shape.num_ranks
        room = memory - model.stored_weights * self.itemsize
        return max(0, int(room / (model.kv_numbers_per_token * self.itemsize)))

    def step(self, shape: ParallelShape) -> StepModel:
        hw, model = self.hardware, self.model
        flops = hw.flops * shape.tensor
        head_s = 2 * model.head_weights / (flops * hw.compute_efficiency)
        pair_flops = 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim
        kv_bytes = model.kv_numbers_per_token * self.itemsize
        return StepModel(
            rows=self._rows(shape),
            per_sampled=femtoseconds(head_s),
            per_prefill_pair=femtoseconds(pair_flops / (flops * hw.attention_efficiency)),
            per_decode_context=femtoseconds(kv_bytes / self._read_rate(shape)),
        )

    def transfer(self, source: ParallelShape, target: ParallelShape) -> TransferModel:
        """Every rank has a link of its own; the side with fewer ranks limits."""
        hw = self.hardware
        lanes = min(source.num_ranks, target.num_ranks)
        rate = hw.network_bandwidth * hw.bandwidth_efficiency * lanes
        kv_bytes = self.model.kv_numbers_per_token * self.itemsize
        return TransferModel(femtoseconds(hw.message_s), femtoseconds(kv_bytes / rate))

    def _rows(self, shape: ParallelShape) -> RowCurve:
        """Bends where products take longer than reading, and on the way there with each doubling of
        the tokens that choose among experts."""
        reading = self._seconds_to_read(self.model.layer_weights, shape)
        knee = max(2, ceil(reading / self._seconds_of_products(shape, 1)))
        bends = {1, knee, 2 * knee}
        if self.model.num_moe_layers:
            bends |= {1 << power for power in range(knee.bit_length())}
        return RowCurve(
            tuple(
                (rows, femtoseconds(self._seconds_of_rows(shape, rows))) for rows in sorted(bends)
            )
        )

    def _seconds_of_rows(self, shape: ParallelShape, rows: int) -> float:
        hw, model = self.hardware, self.model
        read = self._seconds_to_read(model.read_layer_weights(rows), shape)
        products = max(read, self._seconds_of_products(shape, rows))
        numbers = rows * model.hidden_size * self.itemsize
        layers = model.num_hidden_layers
        activations = _ACTIVATIONS_PER_HIDDEN * layers * numbers / self._read_rate(shape)
        return hw.step_s + products + activations + self._seconds_between_ranks(shape, numbers)

    def _seconds_between_ranks(self, shape: ParallelShape, numbers: float) -> float:
        """``numbers``: bytes of the activations of all rows. A ring moves them nearly twice."""
        hw = self.hardware
        rate = hw.link_bandwidth * hw.bandwidth_efficiency
        sums = 0.0
        if shape.tensor > 1:
            each = hw.collective_s + 2 * (1 - 1 / shape.tensor) * numbers / rate
            sums = _SUMS_PER_LAYER * self.model.num_hidden_layers * each
        return sums + (shape.pipeline - 1) * (hw.message_s + numbers / rate)

    def _seconds_to_read(self, layer_weights: float, shape: ParallelShape) -> float:
        """With the head, which every step reads."""
        weights = layer_weights + self.model.head_weights
        return weights * self.itemsize / self._read_rate(shape)

    def _seconds_of_products(self, shape: ParallelShape, rows: int) -> float:
        hw = self.hardware
        rate = hw.flops * hw.compute_efficiency * shape.tensor
        return 2 * rows * self.model.active_layer_weights / rate

    def _read_rate(self, shape: ParallelShape) -> float:
        """Bytes/s of one stage: stages work one after the other on a step."""
        hw = self.hardware
        return hw.memory_bandwidth * hw.bandwidth_efficiency * shape.tensor


def modelled_profile(
    hardware: HardwareSpec,
    model: ModelShape,
    dtype: str,
    created: str,
    shapes: Sequence[ParallelShape] = SHAPES,
) -> LatencyProfile:
    """Of all ``shapes`` that can run and hold the model. Raises ``InvalidField`` if none can."""
    roofline = Roofline(hardware, model, DTYPE_BYTES[dtype])
    refused = {shape: refusal(roofline, shape) for shape in shapes}
    usable = [shape for shape, reason in refused.items() if not reason]
    if not usable:
        reasons = "; ".join(f"{shape}: {reason}" for shape, reason in refused.items())
        raise InvalidField("hardware", hardware.name, f"can't serve {model.name}: {reasons}")
    return LatencyProfile(
        origin=Origin.MODELLED,
        hardware=hardware.name,
        model=model.name,
        model_hash="",
        dtype=dtype,
        created=created,
        max_positions=model.max_position_embeddings,
        weight_bytes=model.stored_weights * roofline.itemsize,
        kv_bytes_per_token=model.kv_numbers_per_token * roofline.itemsize,
        message_s=hardware.message_s,
        request_s=hardware.request_s,
        engines=tuple(_engine(roofline, shape) for shape in usable),
        transfers=tuple(
            TransferProfile("network", source, target, roofline.transfer(source, target))
            for source in usable
            for target in usable
        ),
        device="cuda",
    )


def refusal(roofline: Roofline, shape: ParallelShape) -> str:
    """Why the model can't be served in ``shape``; empty if it can."""
    reason = roofline.model.check(shape)
    if not reason and not roofline.kv_tokens(shape):
        memory = shape.num_ranks * roofline.hardware.memory / 1e9
        weights = roofline.model.stored_weights * roofline.itemsize / 1e9
        return f"{weights:.0f} GB of weights leave no room for KV in {memory:.0f} GB"
    return reason


def _engine(roofline: Roofline, shape: ParallelShape) -> EngineProfile:
    return EngineProfile(
        shape=shape,
        threads=1,
        core_share=1.0,
        step=roofline.step(shape),
        kv_tokens=roofline.kv_tokens(shape),
    )
