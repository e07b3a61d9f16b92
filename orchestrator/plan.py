"""What a configuration is going to need, without starting anything."""

from __future__ import annotations

from rich.table import Table

from orchestrator.checks import Checked
from orchestrator.config import ExperimentConfig
from orchestrator.filters import FILTERS

_RAY_CPUS_NOTE = "Ray's own processes come on top"


def plan_tables(config: ExperimentConfig, checked: Checked) -> list[Table]:
    """The plan of a checked configuration: levels, then everything else."""
    return [_levels(config, checked), _needs(config, checked)]


def _levels(config: ExperimentConfig, checked: Checked) -> Table:
    table = Table(title=f"{config.name}: levels", title_justify="left")
    for name in ("round", "teachers", "classes per block", "teachers are", "assignment", "filters"):
        table.add_column(name)
    filters = " + ".join(getattr(f, FILTERS.key) for f in config.rounds.filters) or "none: keep all"
    for number, level in enumerate(checked.levels):
        sizes = sorted({len(block) for block in level.blocks})
        table.add_row(
            str(number + 1),
            str(level.n_teachers),
            str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}..{sizes[-1]}",
            "given" if number in checked.info.given_teachers else f"trained, {config.teachers.steps} steps",
            config.rounds.assignment if level.n_teachers > 1 else "only one",
            filters if number else "none in round 1",
        )
    return table


def _needs(config: ExperimentConfig, checked: Checked) -> Table:
    info, compute, student = checked.info, config.compute, config.student
    counts = info.counts
    table = Table(title="data and resources", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how much")
    table.add_row("classes, features", f"{info.n_classes}, {info.n_features}")
    table.add_row("samples", ", ".join(f"{name} {count}" for name, count in counts.items()))
    updates = student.epochs * -(-counts["student"] // student.batch_size)
    table.add_row("optimizer updates per round", f"{updates} (batch {student.batch_size}, {student.precision})")
    table.add_row("baselines", ", ".join(("weak", "naive", *config.baselines)))
    own = -(-counts["student"] // compute.workers)
    per_worker = 4 * own * (info.n_features + info.n_classes)
    soft = 2 * own * info.n_classes if config.rounds.supervision == "soft" else 0
    shared = 4 * sum(counts.values()) * info.n_features
    table.add_row("memory", f"{_mib(shared)} shared per node, {_mib(per_worker + soft)} more per student worker")
    table.add_row("device", config.device)
    if compute.backend == "inline":
        table.add_row("compute", f"inline: this process, {compute.cpus_per_worker} threads, no Ray")
    else:
        cpus = compute.workers * compute.cpus_per_worker + compute.teacher_actors * compute.cpus_per_teacher_actor
        gpus = compute.workers * compute.gpus_per_worker
        table.add_row("Ray will be asked for", f"{cpus:g} CPUs, {gpus:g} GPUs ({_RAY_CPUS_NOTE})")
        each = f"{compute.cpus_per_worker} CPU, {compute.gpus_per_worker:g} GPU"
        table.add_row("student workers", f"{compute.workers} x {each}")
        table.add_row("teacher actors", f"{compute.teacher_actors} x {compute.cpus_per_teacher_actor:g} CPU")
    return table


def _mib(count: float) -> str:
    return f"{max(1, round(count / 2**20))} MiB"
