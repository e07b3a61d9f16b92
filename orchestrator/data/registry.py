"""The registry of data sets: where a new kind of data plugs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from orchestrator.registry import Registry

if TYPE_CHECKING:
    from orchestrator.data.dataset import DataInfo, Dataset
    from orchestrator.data.store import Store


class DatasetOptions(BaseModel):
    """Base of the options of every data set; a subclass adds ``name: Literal["..."] = "..."``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DatasetBuilder(Protocol):
    """What a data set has to offer."""

    def describe(self, options: Any, seed: int) -> DataInfo:
        """Counts and shapes, and every mistake in the data, without training or writing anything."""
        ...

    def load(self, options: Any, seed: int, store: Store) -> Dataset:
        """The data itself; whatever is expensive goes through ``store``."""
        ...


DATASETS: Registry[DatasetBuilder] = Registry("dataset", key="name")
