"""YAML that people write by hand, to plain values. Pure.

What the standard safe loader passes over in silence is refused: a key that comes twice. All that
can be wrong with a text is one ``ValueError`` of one line. Does not cover: reading files.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Mappings, lists, strings, numbers, booleans, dates and None. Raises ``ValueError``, saying in
    which line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"is not YAML: {where}{error.problem or error.context}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except (
        *(yaml.YAMLError, ValueError, TypeError),
        *(LookupError, AttributeError, OverflowError),
    ) as error:  # The loader's own constructors let all of these out.
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
        return super().construct_mapping(node, deep)


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Keys as they are written, without those that come from merging (``<<``)."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"{key.value} comes twice", problem_mark=key.start_mark
            )
        seen.add(key.value)
