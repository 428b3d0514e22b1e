"""Fixtures of the tests against a whole cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_prompts import Prompts, make_prompts
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def prompts(smollm2: Path) -> Prompts:
    return make_prompts(smollm2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))
