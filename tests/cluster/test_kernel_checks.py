"""What the doctor says of kernels."""

from __future__ import annotations

import re

import pytest
import torch

import cluster.kernel_checks as checks
from cluster.doctor import run_checks
from kernels.dispatch import description, forced
from kernels.native import library

NOT_BUILT = library.Choice(None, None, "avx2", "not built: run `python -m kernels.native.build`")


def test_the_gain_is_that_of_one_row_and_of_many(monkeypatch) -> None:
    measured = {"native": (0.010, 0.020), "torch": (0.019, 0.021)}
    monkeypatch.setattr(checks, "_seconds", lambda way, dtype: measured[way])
    said = "native is 1.90× torch at one row, 1.05× at 256"
    assert checks.native_gain() == f"bfloat16: {said}; float32: {said}"


def test_the_gain_is_measured_on_both_paths(monkeypatch) -> None:
    if not library.is_available():
        pytest.skip(library.choice().reason)
    monkeypatch.setattr(checks, "_OUTPUTS", 64)
    layers = []
    make = checks.Linear
    monkeypatch.setattr(
        checks, "Linear", lambda weight: layers.append(made := make(weight)) or made
    )
    threads = torch.get_num_threads()
    numbers = [float(number) for number in re.findall(r"([\d.]+)×", checks.native_gain())]
    assert len(numbers) == 4
    assert min(numbers) > 0
    assert len({type(layer._few) for layer in layers}) == 2
    assert torch.get_num_threads() == threads


def test_without_compiled_kernels_it_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr(library, "choice", lambda: NOT_BUILT)
    for compiler, said in (("/usr/bin/g++", ""), (None, "; install g++ first")):
        monkeypatch.setattr(checks.shutil, "which", lambda name, found=compiler: found)
        told = f"torch (not built: run `python -m kernels.native.build`){said}"
        assert checks.kernels_here() == (False, f"{told}: slower, but all works")
    found = {check.name: check for check in run_checks(None, {})}
    assert found["kernels"].status == "warning"
    assert "kernels' gain" not in found


def test_what_runs_is_told_with_its_reason(monkeypatch) -> None:
    monkeypatch.setattr(library, "choice", lambda: NOT_BUILT)
    assert description("cpu", torch.bfloat16).startswith("torch (not built")
    assert description("cpu", torch.float16) == "torch (none is compiled for float16)"
    assert description("cuda", torch.float16) == "triton"
    with forced("torch"):
        assert description("cuda", torch.bfloat16) == "torch (chosen)"


def test_a_gpu_is_named_or_missed(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.gpu_here().startswith("no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    assert checks.gpu_here().startswith("H200, ")
