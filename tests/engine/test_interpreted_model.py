"""A tiny model of some families on the Triton kernels, with the stand-in for CUDA graphs too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cubin import run_python
from tiny_models import make_model


@pytest.mark.triton
@pytest.mark.parametrize("name", ["llama", "mistral with a window", "qwen3"])
def test_tokens_are_those_of_the_torch_path(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path, name)
    program = f"import interpreted_model as m; m.print_answers(m.Path({str(folder)!r}))"
    told = json.loads(run_python(program, interpret=True))
    assert told["torch"] != told["without penalties"], "no penalty changed an answer"
    assert told["triton"] == told["torch"]
    assert told["capturing left the pool alone"]
    # The first step has prompts in it.
    assert told["replays"] == 4
