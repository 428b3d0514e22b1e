"""Errors name what is wrong, and keep it across process boundaries."""

from __future__ import annotations

import copy
import pickle

from core.errors import CrossdockError, InvalidField, Overloaded, Status


def test_a_field_error_names_field_value_and_fix() -> None:
    error = InvalidField("top_p", 1.5, "must be at most 1")
    assert str(error) == "top_p = 1.5: must be at most 1"
    assert error.metadata == {"field": "top_p", "value": "1.5", "fix": "must be at most 1"}


def test_a_long_value_is_shortened() -> None:
    assert len(InvalidField("stop", "x" * 1000, "too long").metadata["value"]) == 80


def test_errors_survive_a_process_boundary() -> None:
    for error in (
        InvalidField("n", 0, "at least 1"),
        Overloaded("later", reason="X", retry_after=2),
    ):
        again: CrossdockError = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(again) is type(error)
        assert (str(again), again.__dict__) == (str(error), error.__dict__)
        assert copy.copy(error).reason == error.reason


def test_every_status_has_its_own_grpc_number() -> None:
    numbers = [status.grpc_number for status in Status]
    assert len(numbers) == len(set(numbers))
