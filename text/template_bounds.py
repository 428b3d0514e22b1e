"""A Jinja sandbox in which a template has only so much work to do.

A template comes with a model and runs inside the router: one that loops, recurses or grows a text
without end must fail soon and alone. Work is counted in steps: one for each turn of a loop, call,
filter, operator and output, and one more for each KiB that it makes. The count is exact, so what
is refused on one machine is refused on all.
Does not cover: a template made to hurt. Whoever chooses a model folder must trust it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Characters of a text, items of a list, or an integer that says how many.
MAX_SIZE = 16 * 1024 * 1024
_MAX_BITS = 4096
_STEP_SIZE = 1024
_DIGITS = re.compile(r"\d+")
_TURNS, _JOINED = "turns of a loop", "joined texts"


class TooMuchWork(Exception):
    """A template needs more than it is allowed."""


@dataclass(slots=True)
class _Work:
    limit: int
    left: int


_work: ContextVar[_Work | None] = ContextVar("work of the template that is rendered", default=None)


@contextmanager
def limited_to(steps: int) -> Iterator[None]:
    """Rendering inside may take so many steps; then it raises TooMuchWork."""
    token = _work.set(_Work(steps, steps))
    try:
        yield
    finally:
        _work.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts what a template does. ``options`` are those of ``jinja2.Environment``."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # Without the optimizer nothing is computed while a template is compiled.
        super().__init__(optimized=False, finalize=_counted, **options)
        for name, function in self.filters.items():
            self.filters[name] = counting(function)
        self.filters[_TURNS] = _turns
        self.filters[_JOINED] = counting(_joined)
        del self.globals["lipsum"]

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_sizes((*args, *kwargs.values()))
        return _counted(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return _counted(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        return tree


class _Bounding(NodeTransformer):
    """Puts a counter into every loop, and into ``~``, which Jinja can't intercept."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _TURNS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def counting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or global function whose results count."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _check_sizes((*args, *kwargs.values()))
        return _counted(function(*args, **kwargs))

    return counted


def _turns(iterable: Iterable[Any]) -> Iterable[Any]:
    # A list stays one, so that `loop.length` costs nothing.
    if isinstance(iterable, list | tuple | str | range | dict):
        _take_steps(len(iterable))
        return iterable
    return _counting_turns(iterable)


def _counting_turns(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _take_steps(1)
        yield item


def _joined(texts: list[Any]) -> str:
    return "".join(map(str, texts))


def _counted(value: Any) -> Any:
    size = len(value) if isinstance(value, str | list | tuple | dict) else 0
    if size > MAX_SIZE:
        raise TooMuchWork(f"it makes a value of {size} characters or items; at most {MAX_SIZE}")
    _take_steps(1 + size // _STEP_SIZE)
    return value


def _take_steps(count: int) -> None:
    work = _work.get()
    if work is None:
        return
    work.left -= count
    if work.left < 0:
        raise TooMuchWork(f"it takes more than {work.limit} steps")


def _check_sizes(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise TooMuchWork(f"it asks for {value} characters or items; at most {MAX_SIZE}")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse what would be too large before it is computed."""
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right)
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
    else:
        bits = 0
    if bits > _MAX_BITS:
        raise TooMuchWork(f"it makes a number of {bits} bits; at most {_MAX_BITS}")
    if operator == "%" and isinstance(left, str):
        _check_sizes(int(width) for width in _DIGITS.findall(left))
    for one, other in ((left, right), (right, left)):
        if operator == "*" and isinstance(one, int) and isinstance(other, str | list | tuple):
            _check_sizes((one * len(other),))
