"""What sections of a recipe are made of: unknown keys are errors, and values never change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[
    float, Field(ge=0, allow_inf_nan=False)
]  # of something else, perhaps several times as much
Part = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """One section; see `schema.Recipe`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
