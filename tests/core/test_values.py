from __future__ import annotations

from core.values import value


@value()
class Point:
    x: int
    y: int = 0


@value(eq=False)
class Thing:
    x: int


def test_equal_values_are_equal_keys() -> None:
    assert {Point(1): "a"}[Point(1, 0)] == "a"
    assert Point(1) != Point(2)


def test_without_eq_each_is_itself() -> None:
    one = Thing(1)
    assert one == one
    assert len({one, one, Thing(1)}) == 2


def test_values_take_no_other_fields_and_can_be_matched() -> None:
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
    assert not hasattr(Point(1), "__dict__")
