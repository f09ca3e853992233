"""What every section of a recipe is made of: unknown keys are errors, and nothing changes once it is validated."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """One section; see `schema.Recipe`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
