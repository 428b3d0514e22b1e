"""Where a worker's peak rates come from."""

from __future__ import annotations

import pytest

from cluster.peak_rates import of_data_sheet, peak_rates
from core.peak_rates import DATA_SHEET, DECLARED, MEASURED, PeakRates
from core.request import Role
from core.step_cost import CostModel
from core.worker_settings import WorkerSettings

COSTS = CostModel(100_000, 10_000, 8, 4, 4, ((None, 1),))


def test_what_is_declared_is_taken() -> None:
    declared = PeakRates(1e15, 1e12, DECLARED)
    settings = WorkerSettings("d0", Role.DECODE, "", num_blocks=1, peak=declared)
    assert peak_rates(settings, COSTS) == declared


def test_a_cpu_is_measured() -> None:
    found = peak_rates(WorkerSettings("d0", Role.DECODE, "", num_blocks=1), COSTS)
    assert found.source == MEASURED
    assert found.flops > 0
    assert found.bandwidth > 0


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362)],
)
def test_known_gpus_have_a_data_sheet(name: str, teraflops: float) -> None:
    found = of_data_sheet(name)
    assert found is not None
    assert (found.flops, found.source) == (teraflops * 1e12, DATA_SHEET)


def test_an_unknown_gpu_has_none() -> None:
    assert of_data_sheet("NVIDIA GeForce RTX 4090") is None
