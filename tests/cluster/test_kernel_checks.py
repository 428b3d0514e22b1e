"""What the doctor says of kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cluster.kernel_checks as checks
import cluster.kernel_gain as kernel_gain
from cluster.doctor import Check, run_checks
from cluster.kernel_gain import Gain, measure_gains
from core import block_hash
from core.config import EngineSpec
from kernels.dispatch import description, forced, implementation
from native import library

NOT_BUILT = library.Choice(None, None, "avx2", "not built: run `python -m native.build`")
AUTO, TORCH = EngineSpec(), EngineSpec(kernels="torch")
WINS = [Gain("bfloat16", "products of 1 row", 1.9), Gain("sampling", "8 rows", 0.9)]
LOSES = [*WINS, Gain("float32", "products of 256", 0.8949)]


def doctor(config: Path | None = None) -> dict[str, Check]:
    return {check.name: check for check in run_checks(None, {}, config)}


def test_gains_are_told_by_operation() -> None:
    assert checks.gains_said(AUTO, WINS) == (
        True,
        "times as fast as torch's: bfloat16: products of 1 row 1.90×; sampling: 8 rows 0.90×",
    )


def test_a_loss_is_a_warning_that_says_what_to_do() -> None:
    good, said = checks.gains_said(AUTO, LOSES)
    assert not good
    assert "float32: products of 256 0.89×" in said
    assert said.partition(". ")[2] == (
        "The compiled ones lose in float32, products of 256: "
        "where that is most of the work, set `engine.kernels: torch`"
    )


def test_who_has_turned_the_compiled_ones_off_is_not_warned() -> None:
    good, said = checks.gains_said(TORCH, LOSES)
    assert good
    assert said.endswith("(not used: engine.kernels is torch)")
    assert checks.kernels_here(TORCH) == (True, "torch (chosen): engine.kernels")


def test_the_doctor_warns_of_a_loss(monkeypatch) -> None:
    if not library.is_available():
        pytest.skip(library.choice().reason)
    monkeypatch.setattr(kernel_gain, "measure_gains", lambda dtypes: LOSES)
    assert doctor()["kernels' gain"].status == "warning"
    monkeypatch.setattr(kernel_gain, "measure_gains", lambda dtypes: WINS)
    assert doctor()["kernels' gain"].status == "ok"


def test_gains_are_measured_on_both_paths(monkeypatch) -> None:
    if not library.is_available():
        pytest.skip(library.choice().reason)
    for name, small in (("_OUTPUTS", 64), ("_VOCABULARY", 500), ("_CONTEXT", 32)):
        monkeypatch.setattr(kernel_gain, name, small)
    ways = set()

    def noting(work):
        return lambda *arguments: ways.add(implementation(torch.empty(0))) or work(*arguments)

    for name in ("Linear", "paged_attention", "sample_tokens"):
        monkeypatch.setattr(kernel_gain, name, noting(getattr(kernel_gain, name)))
        measure_gains([torch.float32])
        assert ways == {"native", "torch"}, name
        ways.clear()
    threads = torch.get_num_threads()
    gains = measure_gains([torch.bfloat16, torch.float32])
    assert [gain.subject for gain in gains] == ["bfloat16"] * 4 + ["float32"] * 4 + ["sampling"]
    assert min(gain.factor for gain in gains) > 0
    assert torch.get_num_threads() == threads


def test_the_factor_is_that_of_the_fastest_runs(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(kernel_gain.time, "thread_time", lambda: now)

    def taking(*seconds: float):
        left = list(seconds)

        def work() -> None:
            nonlocal now
            now += left.pop(0)

        return work

    monkeypatch.setattr(kernel_gain, "_RUNS", 3)
    assert kernel_gain._factor(taking(9, 2, 3), taking(3, 7, 9)) == pytest.approx(1.5)


def test_without_compiled_kernels_it_says_what_to_do_and_what_they_would_gain(
    monkeypatch,
) -> None:
    monkeypatch.setattr(library, "choice", lambda: NOT_BUILT)
    monkeypatch.setattr(block_hash, "_long_chain", block_hash._long_chain.__wrapped__)
    for compiler, fix in (("/usr/bin/g++", ""), (None, "; install g++ first")):
        monkeypatch.setattr(checks.shutil, "which", lambda name, found=compiler: found)
        good, said = checks.kernels_here(AUTO)
        assert not good
        start = f"torch (not built: run `python -m native.build`){fix}: slower, but all "
        assert said.startswith(f"{start}works; compiled ones typically gain: products ")
        assert said.endswith("(docs/PERFORMANCE.md, not measured here)")
    found = doctor()
    assert found["kernels"].status == "warning"
    assert "kernels' gain" not in found
    hashes = found["block hashes"]
    assert (hashes.status, NOT_BUILT.reason in hashes.detail) == ("warning", True)


def test_a_damaged_library_is_a_warning_even_where_another_stands_in(monkeypatch) -> None:
    real = library.choice()
    reason = "compiled for avx2; the library for avx512 can't be loaded: empty; run `…`"
    stand_in = library.Choice(real.library, real.brief, "avx2", reason, damaged=True)
    monkeypatch.setattr(library, "choice", lambda: stand_in)
    good, said = checks.kernels_here(AUTO)
    assert not good
    assert reason in said


def test_the_config_says_which_kernels_run(monkeypatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(
        kernel_gain, "measure_gains", lambda dtypes: asked.append(tuple(dtypes)) or LOSES
    )
    config = tmp_path / "cluster.yaml"
    config.write_text("engine: {kernels: torch, dtype: float32}\n")
    found = doctor(config)
    assert (found["kernels"].status, found["kernels"].detail) == (
        "ok",
        "torch (chosen): engine.kernels",
    )
    if library.is_available():
        assert found["kernels' gain"].status == "ok"
        assert asked == [(torch.float32,)]
    for engine, said in (
        ("{device: cuda}", "triton"),
        ("{dtype: float16}", "torch (none is compiled for float16)"),
    ):
        config.write_text(f"engine: {engine}\n")
        found = doctor(config)
        assert found["kernels"].detail == said
        assert "kernels' gain" not in found


@pytest.mark.thorough
def test_a_config_that_can_not_be_served_fails(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("engine: {kernels: fast}\n")
    found = doctor(config)["config"]
    assert found.status == "failed"
    assert "engine.kernels" in found.detail


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
