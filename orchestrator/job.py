"""What is sent to where the student trains. No torch here: the driver builds these without importing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.chains import Chain
from orchestrator.config import ExperimentConfig
from orchestrator.method.hierarchy import Level

Event = dict[str, Any]
"""Progress: ``chain``, ``round``, and ``event`` = ``epoch`` (epoch, epochs, loss) or ``round`` (key, cached);
in the event file also ``at``, the time it happened."""
Emit = Callable[[Event], None]


@dataclass(frozen=True)
class StudentView:
    """Everything of the data that a training worker receives. No ground truth."""

    train: NDArray[np.float32]
    """Features of the student's samples [N, D]."""
    validation: NDArray[np.float32]
    """Features of the validation samples [Nv, D]."""
    test: NDArray[np.float32]
    """Features of the test samples [Nt, D]."""
    rows: NDArray[np.int64]
    """Row in the data set of each training sample [N]."""
    n_classes: int


@dataclass(frozen=True)
class StudentJob:
    """What to train."""

    config: ExperimentConfig
    levels: tuple[Level, ...]
    chains: tuple[Chain, ...]
    cache: Path
    """Folder of the round cache."""
