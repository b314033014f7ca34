"""What every section of a recipe is. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Unknown keys and loose types are errors; a recipe does not change."""

    # Strict: "1e-4", which YAML 1.1 reads as a string, is an error that names the key. Trees are
    # validated as JSON (resolve.py), so that lists are tuples and 1 is a fine float.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
