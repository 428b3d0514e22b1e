"""Dotted paths of settings: all that there are, and which one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args, get_origin

from pydantic import BaseModel

# In paths of settings that are under a name of the user's.
ANY_NAME = "NAME"


def field_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every valid dotted path, sections included; `ANY_NAME` where users choose names."""
    paths: list[str] = []
    for name, info in model.model_fields.items():
        paths.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                named = f".{ANY_NAME}" if get_origin(info.annotation) is dict else ""
                paths += field_paths(kind, f"{prefix}{name}{named}.")
    return paths


def did_you_mean(path: str, known: Sequence[str]) -> str:
    """Points to the one of ``known`` with the closest name, in its section if possible."""
    section, _, name = path.rpartition(".")
    named = [other.replace(ANY_NAME, _name_in(path)) for other in known]
    siblings = [other for other in named if other.rpartition(".")[0] == section]
    for candidates in (siblings, named):
        by_name = {other.rpartition(".")[2]: other for other in reversed(candidates)}
        close = difflib.get_close_matches(name, by_name, 1)
        if close:
            return f"unknown setting; did you mean `{by_name[close[0]]}`?"
    return f"unknown setting; valid here: {', '.join(siblings)}"


def _name_in(path: str) -> str:
    """The user's own name in it, if there is one."""
    parts = path.split(".")
    return parts[1] if parts[0] == "tenants" and len(parts) > 2 else ANY_NAME
