"""What every section of a recipe is made of: no unknown keys, and numbers that are numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["BelowOne", "Count", "CountOrZero", "Positive", "PositiveOrZero", "Section"]


def _not_a_boolean(value: Any) -> Any:
    # pydantic reads true as 1, which in a recipe is always a slip.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_not_a_boolean), Field(gt=0)]
PositiveOrZero = Annotated[float, BeforeValidator(_not_a_boolean), Field(ge=0)]
BelowOne = Annotated[float, BeforeValidator(_not_a_boolean), Field(ge=0, lt=1)]


class Section(BaseModel):
    """Keys below one key of a recipe; a key that is not a field is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
