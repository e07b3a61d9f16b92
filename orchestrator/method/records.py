"""What goes into a round, what comes out, and the seams to whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from orchestrator.method.consistency import Signals
from orchestrator.method.hierarchy import Level


@dataclass(frozen=True)
class RoundSpec:
    """What one round does."""

    level: Level | None
    """The level that supervises; None: the ground truth does (strong ceiling)."""
    level_index: int
    """Number of the level, from 0; -1 for the ceiling."""
    assignment: str
    """student, soft, agreement, oracle, mean, vote, or ceiling."""
    soft: bool
    """Train on distributions rather than on their argmax."""
    filters: Sequence[Callable[[Signals], Tensor]] = ()
    keep_all_if_empty: bool = False


@dataclass(frozen=True)
class RoundOutput:
    """Everything a round leaves behind; enough to open the next one and to evaluate this one."""

    head: Mapping[str, Tensor]
    """State of the trained head."""
    assigned: Tensor
    """Teacher per sample, int32 [N]; -1 where a mixture of all teachers, or the truth, supervised."""
    top_classes: Tensor
    """Most likely classes of the supervision, best first, int32 [N, T]; column 0 is the supervised class."""
    teacher_confidence: Tensor
    """Probability the supervision gives its own class, float32 [N]."""
    keep: Tensor
    """Mask of the samples trained on, bool [N]."""
    train_classes: Tensor
    """The new student's class on its own training samples, int32 [N]."""
    validation_classes: Tensor
    """... on the validation samples, int32 [Nv]."""
    test_classes: Tensor
    """... on the test samples, int32 [Nt]."""
    test_curve: Tensor
    """Test classes after some of the epochs, int32 [P, Nt]; see ``curve_epochs``. Reported, never used."""
    curve_epochs: tuple[int, ...]
    """Epoch (from 1) of each row of ``test_curve``."""
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""
    consensus: tuple[float, ...] = ()
    """Consensus rates for k = 1, 2, 3; empty in the first round, which has no previous student."""
    asked: int = 0
    """Predictions asked of teachers."""
    forward_passes: int = 0
    """Forward passes the teachers made for them (fewer where a cache answered)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds of the phases teachers, assignment, training, logits."""
    trained_samples: int = 0
    """Samples the optimizer saw, over all epochs."""

    @property
    def label_class(self) -> Tensor:
        """Supervised class per sample, int32 [N]."""
        return self.top_classes[:, 0]


@dataclass(frozen=True)
class StudentData:
    """What the student's training sees of the data: features, no label."""

    own: Tensor
    """Numbers of the samples this worker owns, int64 [n]."""
    n_samples: int
    """N, over all workers."""
    n_classes: int
    train: Tensor
    """Features of the owned samples [n, D]."""
    validation: Tensor
    """Features of the validation samples [Nv, D] (empty on all workers but rank 0)."""
    test: Tensor
    """Features of the test samples [Nt, D] (empty on all workers but rank 0)."""


class Teachers(Protocol):
    """Answers of the weak teachers on the student's training samples (in this process, or Ray actors)."""

    def predict(self, level: int, assigned: Tensor, samples: Tensor) -> tuple[Tensor, int]:
        """Teacher ``assigned[j]`` on sample ``samples[j]``: (probabilities fp16 [n, C], forward passes made)."""
        ...


class HeadTrainer(Protocol):
    """Trains a fresh head per round; owns initialisation, batch order, loss and learning rate."""

    def fit(self, level: int, targets: Tensor, keep: Tensor, on_epoch: Callable[[int, int, float], None]) -> Fitted:
        """Train on the kept samples; ``targets`` are classes int64 [n] or distributions [n, C] of the owned samples."""
        ...

    def logits(self, head: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits float32 [n, C] of a trained head."""
        ...


class Fitted(Protocol):
    """A trained head and how it got there; see `RoundOutput` for what each is."""

    @property
    def head(self) -> Mapping[str, Tensor]: ...
    @property
    def losses(self) -> tuple[float, ...]: ...
    @property
    def test_curve(self) -> Tensor: ...
    @property
    def curve_epochs(self) -> tuple[int, ...]: ...
    @property
    def trained_samples(self) -> int: ...


class RoundIO(Protocol):
    """The seam between the loop and what runs it (one process; Ray Train)."""

    rank: int
    world_size: int

    def merge(self, own: Tensor, values: Tensor, n_samples: int) -> Tensor:
        """Global vector [N, ...] out of every worker's ``values`` for the samples it owns."""
        ...

    def total(self, count: int) -> int:
        """Sum of a count over the workers."""
        ...

    def load(self, number: int) -> RoundOutput | None:
        """A round (from 1) that is finished already."""
        ...

    def report(self, number: int, output: RoundOutput) -> None:
        """Store a finished round so that nothing after it can lose it."""
        ...

    def progress(self, number: int, epoch: int, epochs: int, loss: float) -> None:
        """An epoch is done."""
        ...
