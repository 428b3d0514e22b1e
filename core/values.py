"""Values that nobody changes, and that cost little to make.

Does not cover: nouns that live long; they are frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

T = TypeVar("T")

if TYPE_CHECKING:

    @dataclass_transform(frozen_default=True, field_specifiers=(field,))
    def value(*, eq: bool = True) -> Callable[[type[T]], type[T]]: ...

else:

    def value(*, eq=True):
        """A dataclass, frozen for the type checker alone: events and commands are made by the
        dozen for each request, and Python takes four times as long to make frozen ones."""
        return dataclass(slots=True, eq=eq, unsafe_hash=eq)
