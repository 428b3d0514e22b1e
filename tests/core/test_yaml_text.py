"""YAML by hand: plain values, and one line for whatever is wrong."""

from __future__ import annotations

import pytest

from core.yaml_text import parse_yaml


def test_plain_values() -> None:
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: {a: 1}, e: {a: 2}}\n"
    values = {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": {"a": 1}, "e": {"a": 2}}}
    assert parse_yaml(text) == values
    assert parse_yaml("") is None


def test_what_is_merged_may_be_overridden() -> None:
    text = "base: &base {a: 1, b: 2}\nown: {<<: *base, a: 3}\nagain: {<<: *base, b: 4}\n"
    parsed = parse_yaml(text)
    assert parsed["own"] == {"a": 3, "b": 2}
    assert parsed["again"] == {"a": 1, "b": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "is not YAML: line 3: a comes twice"),
        ("a: {b: 1, b: 1}", "is not YAML: line 1: b comes twice"),
        ("a:\t1", "is not YAML: line 1: found character"),
        ("a: [", "is not YAML: line 1: expected the node content"),
        ("a: !!python/object:os.system x", "is not YAML: line 1: could not determine"),
        ("a: 2023-99-99", "is not YAML: month must be in"),
        ("a: \x00", "is not YAML: unacceptable character"),
        ("[" * 1000, "is nested too deeply"),
        ("{[a]: 1}", "is not YAML: line 1: found unhashable key"),
        ("!!map [a, b]", "is not YAML"),
        ("!!bool foo", "is not YAML"),
        ("!!int ''", "is not YAML"),
        ("!!timestamp foo", "is not YAML"),
        ("a: " + ":".join(["59"] * 200) + ".5", "is not YAML"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
