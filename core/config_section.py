"""What all sections of the config have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

# Of errors that a check of a whole section finds in one of its settings.
WITHIN = "within"


class Section(BaseModel):
    """What stands under a field describes it, here and in the generated reference and schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def wrong_within(path: tuple[str, ...], value: object, fix: str) -> PydanticCustomError:
    """For validators of a section to raise: ``path`` leads from there to the setting that holds
    ``value``, which is printed."""
    return PydanticCustomError(WITHIN, "{fix}", {"path": path, "value": value, "fix": fix})
