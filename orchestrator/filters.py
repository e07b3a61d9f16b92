"""The consistency filters a configuration can name, each bound to its pure function in `method.consistency`.

A filter is a function of the round's `Signals` (global per-sample vectors) that returns the keep mask [N].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.method import TOP_STORED
from orchestrator.registry import Registry

if TYPE_CHECKING:  # torch only where a mask is computed: reading a config must stay fast
    from torch import Tensor

    from orchestrator.method.consistency import Signals

FilterFunction = Callable[["Signals", Any], "Tensor"]


class FilterOptions(BaseModel):
    """Base of the options of every filter."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


FILTERS: Registry[FilterFunction] = Registry("filter", key="kind")


class TopKRate(FilterOptions):
    """The paper's criterion ``top-k``: the consensus rate says how many, the student's loss says which."""

    kind: Literal["topk_rate"] = "topk_rate"
    k: Annotated[int, Field(ge=1)] = 3
    """The supervised class must be among the student's ``k`` most likely classes to count as consensus."""


class ProbabilityThreshold(FilterOptions):
    """Keep samples whose label is probable enough."""

    kind: Literal["threshold"] = "threshold"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Smallest probability of the supervised class."""
    of: Literal["student", "teacher"] = "student"
    """Whose probability."""


class KeepFraction(FilterOptions):
    """Keep a fixed share of the samples: those of lowest student loss."""

    kind: Literal["keep_fraction"] = "keep_fraction"
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the samples that is kept."""


class LocalGlobal(FilterOptions):
    """Local-global consistency: the specialist's class against the previous level's supervision."""

    kind: Literal["local_global"] = "local_global"
    k: Annotated[int, Field(ge=1, le=TOP_STORED)] = 1
    """The specialist's class must be among the previous supervision's ``k`` most likely classes."""
    confidence: bool = False
    """Also require that the teacher's confidence does not drop from one level to the next."""
    select: Literal["agreeing", "lowest_loss"] = "agreeing"
    """Keep the agreeing samples themselves, or as many samples of lowest student loss."""


@FILTERS.register(TopKRate)
def topk_rate(signals: Signals, options: TopKRate) -> Tensor:
    from orchestrator.method import consistency

    return consistency.keep_by_topk_rate(signals.student_rank, signals.student_loss, options.k)


@FILTERS.register(ProbabilityThreshold)
def threshold(signals: Signals, options: ProbabilityThreshold) -> Tensor:
    from orchestrator.method import consistency

    confidence = signals.student_confidence if options.of == "student" else signals.teacher_confidence
    return consistency.keep_by_threshold(confidence, options.probability)


@FILTERS.register(KeepFraction)
def keep_fraction(signals: Signals, options: KeepFraction) -> Tensor:
    from orchestrator.method import consistency

    return consistency.keep_fraction(signals.student_loss, options.fraction)


@FILTERS.register(LocalGlobal)
def local_global(signals: Signals, options: LocalGlobal) -> Tensor:
    from orchestrator.method import consistency

    agree = consistency.local_global_agreement(signals.previous_rank, options.k)
    if options.confidence:
        agree &= consistency.confidence_not_dropping(signals.teacher_confidence, signals.previous_confidence)
    if options.select == "lowest_loss":
        return consistency.keep_lowest_loss(signals.student_loss, int(agree.sum()))
    return agree


def bind(filters: tuple[FilterOptions, ...]) -> list[Callable[[Signals], Tensor]]:
    """The filters of a configuration as functions of the signals alone."""

    def bound(options: FilterOptions) -> Callable[[Signals], Tensor]:
        function = FILTERS.builder(getattr(options, FILTERS.key))
        return lambda signals: function(signals, options)

    return [bound(options) for options in filters]
