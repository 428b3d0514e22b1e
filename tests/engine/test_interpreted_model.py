"""A tiny model of some families on the Triton kernels, with the stand-in for CUDA graphs too."""

from __future__ import annotations

from pathlib import Path

import pytest
from cubin import run_python
from tiny_models import make_model


@pytest.mark.triton
@pytest.mark.parametrize("name", ["llama", "mistral with a window", "qwen3"])
def test_tokens_are_those_of_the_torch_path(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path, name)
    program = f"import interpreted_model as m; m.check_model(m.Path({str(folder)!r}))"
    run_python(program, interpret=True)
