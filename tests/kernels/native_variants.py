"""The compiled libraries that this machine can run, for tests to go through all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.dispatch import forced
from native import library
from native.build import library_path, variants


def runnable() -> list[str]:
    flags = library._cpu_flags()
    return [name for name, instructions in variants().items() if set(instructions) <= flags]


@pytest.fixture(params=["torch", *runnable()])
def cpu_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Torch's operations, then every compiled variant: a machine may choose any of them."""
    if request.param == "torch":
        with forced("torch"):
            yield "torch"
        return
    name = request.param
    if not library_path(name).exists():
        pytest.skip(f"{name} is not built here: no C++ compiler")
    found = library.load(name, "for a test")
    monkeypatch.setattr(library, "choice", lambda: found)
    yield name


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Tensors that are made without values are full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(7).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["torch", "chosen"])
def kernels_of_the_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """A whole model without a compiler, then with what this machine chooses."""
    with forced("torch" if request.param == "torch" else None):
        yield request.param
