"""Fixtures of the tests against a whole cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle_prompts import Prompts, make_prompts
from served_cluster import ServedCluster, served
from tiny_model import make_tiny_model

from oracle import Oracle


@pytest.fixture(scope="session")
def prompts(smollm2: Path) -> Prompts:
    return make_prompts(smollm2)


@pytest.fixture(scope="session")
def float32_cluster(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[ServedCluster]:
    """Of as many prefill and decode workers as ``ratios.at`` says; it ends when another ratio is
    asked for."""
    prefill, decode = request.param
    with served(smollm2, prefill, decode, "--dtype", "float32") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_oracle(tiny_model: Path) -> Oracle:
    return Oracle(tiny_model)
