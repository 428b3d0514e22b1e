"""Immutable values that are made anew for every request or event.

To the type checker ``@value`` is ``@dataclass(frozen=True, slots=True)``; at run time nothing stops
who changes a field, because that is what takes a frozen dataclass four times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(kind: type[T]) -> type[T]:
    """Equal and hashed by all fields."""
    return dataclass(slots=True, unsafe_hash=True)(kind)
