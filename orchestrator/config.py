"""The configuration tree: one frozen pydantic model, one way to write it (YAML + ``--set a.b=c``).

Nothing here imports torch or Ray or looks at hardware or data; `orchestrator.loading` reads files and
`orchestrator.checks` asks whether the data and the settings fit together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.data import DATASETS
from orchestrator.data.digits import DigitsOptions
from orchestrator.data.registry import DatasetOptions
from orchestrator.filters import FILTERS, FilterOptions, TopKRate
from orchestrator.registry import Registry

Assignment = Literal["student", "soft", "agreement", "oracle", "mean", "vote"]
Baseline = Literal["ceiling", "mean", "vote", "oracle"]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: frozen, keyword-only, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class HierarchyConfig(Section):
    """The levels of weak teachers and what each teacher is a specialist of."""

    levels: Annotated[tuple[PositiveInt | tuple[tuple[int, ...], ...], ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Per level, either the number of teachers ``K`` (classes are cut into ``K`` contiguous blocks, uneven where
    they do not divide) or the class blocks themselves, one list of class ids per teacher."""

    class_order: tuple[int, ...] | None = None
    """The order in which classes are cut into blocks; None is 0..C-1. Put classes that are alike side by side."""


class TeachersConfig(Section):
    """How weak teachers are trained (levels whose probabilities come with the data are not trained)."""

    kind: Literal["linear"] = "linear"
    """The model: one linear layer on the flattened raw inputs."""

    steps: Annotated[int, Field(ge=1)] = 40
    """Adam steps per teacher."""

    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Adam learning rate."""

    batch_size: PositiveInt = 32
    """Samples per step, drawn from the teacher's own block only."""


class AuxiliaryConfidence(Section):
    """Strength of the auxiliary-confidence loss (Burns et al. 2023, arXiv 2312.09390, section 4.3)."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Final weight of the student's own hardened prediction."""

    warmup: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the updates over which the weight grows linearly from 0 to ``alpha``."""


class StudentConfig(Section):
    """The strong student's head and how each round trains a fresh one."""

    head: Literal["linear", "mlp"] = "linear"
    """A linear layer, or one hidden ReLU layer."""

    hidden: PositiveInt = 512
    """Width of the hidden layer (``head: mlp`` only)."""

    epochs: PositiveInt = 20
    """Epochs when everything is kept; a filtered round gets ``int(epochs / keep rate)``."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam learning rate, annealed to 0 by a cosine over the updates of the round."""

    batch_size: PositiveInt = 100
    """The *global* batch, whatever the number of workers."""

    loss: Literal["cross_entropy", "auxiliary_confidence"] = "cross_entropy"
    """Cross-entropy against the supervision, or mixed with the student's own confident prediction."""

    auxiliary_confidence: AuxiliaryConfidence = AuxiliaryConfidence()
    """Used when ``loss: auxiliary_confidence``."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the matrix products; weights, Adam state and softmax stay fp32."""

    test_curve_every: Annotated[int, Field(ge=0)] = 1
    """Record the student's test predictions every so many epochs for the curve (0: only at the end). Reported, never
    used: the student of a round is always that of its last epoch."""


class RoundsConfig(Section):
    """What happens between the student and its teachers in each round."""

    supervision: Literal["hard", "soft"] = "soft"
    """Teachers' one-hot argmax, or their distribution."""

    assignment: Assignment = "student"
    """Who teaches a sample; ``oracle`` looks at the ground truth and is an upper bound, not a result."""

    filters: tuple[Annotated[FilterOptions, FILTERS], ...] = (TopKRate(),)
    """Consistency filters from round 2 on; a sample is kept if every filter keeps it. Empty: keep all."""

    on_empty: Literal["error", "keep_all"] = "error"
    """When the filters reject everything: stop with an error, or train the round on all samples."""


class ComputeConfig(Section):
    """Where things run. Nothing here changes the result beyond float summation order."""

    backend: Literal["train", "inline"] = "train"
    """``train``: student under Ray Train, teachers in Ray actors. ``inline``: one process, no Ray."""

    workers: PositiveInt = 1
    """Ray Train workers of the student."""

    cpus_per_worker: PositiveInt = 1
    """CPUs asked for, and torch threads used, per student worker."""

    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs asked for per student worker."""

    teacher_actors: PositiveInt = 1
    """Ray actors over which the teachers are spread."""

    cpus_per_teacher_actor: Annotated[float, Field(ge=0)] = 0
    """CPUs reserved per teacher actor; 0 because teachers answer while the student waits."""

    max_failures: Annotated[int, Field(ge=0)] = 3
    """How many times a lost worker group is restarted before the run stops."""

    ray_address: str | None = None
    """Ray cluster to join (``auto`` or an address); None: RAY_ADDRESS if set, else a private local Ray."""


class TrackingConfig(Section):
    """Delivery of the run's journal to MLflow."""

    enabled: bool = True
    """False: only the local journal is written; ``csl sync`` can still deliver it later."""

    uri: str | None = None
    """Tracking server; None: MLFLOW_TRACKING_URI if set, else SQLite inside ``storage``."""

    experiment: Annotated[str, Field(min_length=1)] = "co-supervised-learning"
    """MLflow experiment the runs go to."""

    wait_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long the end of a run waits for an unfinished delivery before leaving it to ``csl sync``."""


class ExperimentConfig(Section):
    """One experiment. Frozen; its resolved form is saved with the results and is enough to repeat them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "digits"
    """Name of the run's folder and of the MLflow run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random stream is derived from this seed and the stream's name."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where student and trained teachers compute; ``auto`` takes CUDA where the process sees one."""

    storage: Annotated[str, Field(min_length=1)] = "runs"
    """Folder for results, caches and the embedded MLflow store; shared between nodes on a cluster."""

    data: Annotated[DatasetOptions, DATASETS] = DigitsOptions()
    """The data set, chosen by ``name``; each has its own options."""

    hierarchy: HierarchyConfig = HierarchyConfig()
    teachers: TeachersConfig = TeachersConfig()
    student: StudentConfig = StudentConfig()
    rounds: RoundsConfig = RoundsConfig()

    baselines: tuple[Baseline, ...] = ("ceiling", "mean", "vote", "oracle")
    """Baselines trained beside the main student; weak and naive cost nothing and are always shown."""

    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()

    def to_dict(self) -> dict[str, Any]:
        """The whole resolved tree as plain JSON types."""
        # serialize_as_any: plug-in sections keep the fields of their own class
        return self.model_dump(mode="json", serialize_as_any=True)


BUILT_WITH = Registry.total_version()
"""Version of the registries these models were built with; `loading` builds them again for later plug-ins."""
