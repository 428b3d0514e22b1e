"""A value that is computed when it is first asked for, and kept in the object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class lazy(Generic[Value]):
    """`functools.cached_property` without the lock that Python 3.11 takes in it each time, which is
    slower than what it guards here. For objects of one thread."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Value:
        value = self._compute(instance)
        instance.__dict__[self._name] = value
        return value
