"""What all sections of the config have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What stands under a field describes it, here and in the generated reference and schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
