"""What sections of a recipe are made of: unknown keys are errors, and values never change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # perhaps several times as much
Part = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """One section; see `schema.Recipe`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, values: object) -> object:
        """Refuses unknown keys, and names those that are allowed."""
        given = values if isinstance(values, dict) else {}
        if keys := [str(key) for key in given if key not in cls.model_fields]:
            facts = {"keys": keys, "allowed": sorted(cls.model_fields)}
            raise PydanticCustomError("unknown", "unknown keys", facts)
        return values
