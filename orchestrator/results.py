"""A finished experiment: its numbers, its students, where it is stored."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.chains import MAIN
from orchestrator.config import ExperimentConfig
from orchestrator.data.store import Arrays, load_arrays, save_arrays
from orchestrator.errors import StorageError
from orchestrator.evaluation import RoundMetrics, TeacherAccuracy
from orchestrator.loading import parse, read_yaml
from orchestrator.round_cache import read_round

if TYPE_CHECKING:
    from torch import nn

_RESULTS, _STUDENT, _STUDENT_FORM = "results.json", "student.safetensors", "student.json"


@dataclass(frozen=True)
class RoundResult:
    """One finished round."""

    metrics: RoundMetrics
    path: Path
    """Folder of the stored round."""

    @property
    def assignment(self) -> NDArray[np.int32]:
        """Teacher per training sample, int32 [N]; -1 where all teachers were mixed."""
        return self._array("assigned")

    @property
    def keep(self) -> NDArray[np.bool_]:
        """Mask of the samples trained on, bool [N]."""
        return self._array("keep")

    @property
    def labels(self) -> NDArray[np.int32]:
        """Supervised class per training sample, int32 [N]."""
        labels: NDArray[np.int32] = self._array("top_classes")[:, 0]
        return labels

    @property
    def head(self) -> Arrays:
        """Weights of the student trained in this round."""
        return read_round(self.path).head

    def _array(self, name: str) -> NDArray[Any]:
        return read_round(self.path).arrays[name]


@dataclass(frozen=True)
class ExperimentResult:
    """What `run_experiment` returns and what a run's folder holds."""

    config: ExperimentConfig
    identity: str
    path: Path
    """The run's folder."""
    weak_accuracy: float | None
    ceiling_accuracy: float | None
    teachers: tuple[TeacherAccuracy, ...]
    chains: dict[str, tuple[RoundResult, ...]]
    """``main`` and each baseline -> its rounds."""
    seconds: float
    """Wall time of the run that finished it."""

    @property
    def rounds(self) -> tuple[RoundResult, ...]:
        """The rounds of the method itself."""
        return self.chains[MAIN]

    @property
    def naive_accuracy(self) -> float | None:
        """Naive weak-to-strong: the student of round 1."""
        return self.rounds[0].metrics.student_accuracy

    @property
    def tracking_uri(self) -> str:
        """The MLflow store the run is delivered to."""
        uri: str = json.loads((self.path / "run.json").read_text())["uri"]
        return uri

    @property
    def mlflow_run_id(self) -> str | None:
        """The run in that store, once something has been delivered to it."""
        delivered = self.path / "delivered.json"
        return json.loads(delivered.read_text())["run_id"] if delivered.exists() else None

    def student(self) -> nn.Module:
        """The last round's student: raw inputs [n, ...] -> logits [n, C]."""
        return load_student(self.path)

    @classmethod
    def load(cls, path: Path | str) -> ExperimentResult:
        """Read a run's folder.

        Raises:
            StorageError: there is no finished run.
        """
        path = Path(path)
        try:
            content = json.loads((path / _RESULTS).read_text())
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: holds no finished run ({error})") from None
        config, problems, _ = parse(read_yaml(path / "config.yaml"))
        if problems:
            raise StorageError(f"{path / 'config.yaml'}: is not valid for this version: {'; '.join(problems)}")
        chains = {
            name: tuple(RoundResult(_metrics(r["metrics"]), (path / r["path"]).resolve()) for r in rounds)
            for name, rounds in content["chains"].items()
        }
        teachers = tuple(TeacherAccuracy(**t) for t in content["teachers"])
        plain = {k: content[k] for k in ("identity", "weak_accuracy", "ceiling_accuracy", "seconds")}
        return cls(config=config, path=path, teachers=teachers, chains=chains, **plain)

    def save(self) -> None:
        """Write ``results.json``, last of all files: a folder that has it is complete."""
        content = {
            "identity": self.identity,
            "weak_accuracy": self.weak_accuracy,
            "ceiling_accuracy": self.ceiling_accuracy,
            "naive_accuracy": self.naive_accuracy,
            "seconds": self.seconds,
            "teachers": [vars(t) for t in self.teachers],
            "chains": {
                name: [{"metrics": r.metrics.to_dict(), "path": os.path.relpath(r.path, self.path)} for r in rounds]
                for name, rounds in self.chains.items()
            },
        }
        temporary = self.path / f".{_RESULTS}"
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.path / _RESULTS)


def save_student(path: Path, config: ExperimentConfig, n_classes: int, encoder: Arrays, head: Arrays) -> None:
    """Write encoder and head of the final student, without torch."""
    weights = {f"encoder.{k}": v for k, v in encoder.items()} | {f"head.{k}": v for k, v in head.items()}
    save_arrays(path / _STUDENT, weights)
    form = {"head": config.student.head, "hidden": config.student.hidden, "n_classes": n_classes}
    (path / _STUDENT_FORM).write_text(json.dumps(form))


def load_student(path: Path) -> nn.Module:
    """The final student of a run's folder: raw inputs [n, ...] -> logits [n, C].

    Raises:
        StorageError: files are missing or damaged.
    """
    import torch
    from torch import nn

    from trainers.backbones import encoder
    from trainers.heads import load_head

    try:
        form = json.loads((path / _STUDENT_FORM).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: holds no student ({error})") from None
    weights = {k: torch.from_numpy(v) for k, v in load_arrays(path / _STUDENT).items()}
    parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "head": {}}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    head = load_head(form["head"], form["n_classes"], form["hidden"], parts["head"])
    return nn.Sequential(encoder(parts["encoder"]), head).eval()


def _metrics(content: dict[str, Any]) -> RoundMetrics:
    """JSON turns integer keys into text and tuples into lists; turn them back."""
    for name in ("consensus_rate", "test_curve"):
        content[name] = {int(k): v for k, v in content[name].items()}
    content["losses"] = tuple(content["losses"])
    return RoundMetrics(**content)
