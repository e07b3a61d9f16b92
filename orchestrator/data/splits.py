"""The shares of a seeded split, as a configuration section shared by the data sets."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class SplitShares(BaseModel):
    """Shares of the samples that go to each part; they sum to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    teacher: Share = 0.25
    """Trains the weak teachers, with labels."""
    student: Share = 0.45
    """Trains the student, without labels."""
    validation: Share = 0.1
    """Chooses between trials."""
    test: Share = 0.2
    """Reports."""

    def problems(self, field: str, needed: tuple[str, ...]) -> list[str]:
        """Mistakes: shares that do not sum to 1, parts that are needed and empty."""
        shares = self.model_dump()
        found = [f"{field}.{name}: must be above 0 here (got 0)" for name in needed if shares[name] == 0]
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            found.append(f"{field}: shares must sum to 1 (got {total:g})")
        return found
