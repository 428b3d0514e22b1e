"""Fixtures of the tests against a whole cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_prompts import Prompts, make_prompts


@pytest.fixture(scope="session")
def prompts(smollm2: Path) -> Prompts:
    return make_prompts(smollm2)
