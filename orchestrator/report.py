"""Results as tables for people."""

from __future__ import annotations

from rich.table import Table

from orchestrator.chains import MAIN
from orchestrator.display import percent
from orchestrator.method.metrics import pgr
from orchestrator.results import ExperimentResult

_BASELINES = {
    "mean": "student of the specialists' mean",
    "vote": "student of the specialists' vote",
    "oracle": "oracle assignment (upper bound, uses ground truth)",
}


def rounds_table(result: ExperimentResult) -> Table:
    """One row per round of the method."""
    config = result.config.rounds
    filters = " + ".join(f.kind + (f" k={f.k}" if hasattr(f, "k") else "") for f in config.filters) or "none"  # type: ignore[attr-defined]
    oracle = " [red](ORACLE: uses ground truth)[/red]" if config.assignment == "oracle" else ""
    table = Table(
        title=f"{result.config.name}, seed {result.config.seed}: {config.supervision} labels, "
        f"assignment {config.assignment}{oracle}, filter {filters}",
        title_justify="left",
    )
    names = ("round", "teachers", "collective\naccuracy", "assignment\naccuracy", "keep\nrate", "filter\nprecision")
    for name in (*names, "filter\nrecall", "student\naccuracy", "PGR", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in result.rounds:
        m = r.metrics
        table.add_row(
            str(m.round),
            str(m.teachers),
            percent(m.collective_accuracy),
            percent(m.assignment_accuracy),
            percent(m.keep_rate),
            percent(m.filter_precision),
            percent(m.filter_recall),
            percent(m.student_accuracy),
            percent(m.pgr),
            f"{sum(m.seconds.values()):.1f}" + (" (stored)" if m.cached else ""),
        )
    return table


def baselines_table(result: ExperimentResult) -> Table:
    """Co-supervision beside everything it has to be compared with; all accuracies on the test split."""
    table = Table(title="compared with (test accuracy of the last epoch)", title_justify="left")
    table.add_column("what")
    table.add_column("accuracy", justify="right")
    table.add_column("PGR", justify="right")

    def row(label: str, accuracy: float | None, style: str | None = None) -> None:
        gap = pgr(accuracy, result.weak_accuracy, result.ceiling_accuracy)
        table.add_row(label, percent(accuracy), percent(gap), style=style)

    row("weak: the generalist itself", result.weak_accuracy)
    row("naive weak-to-strong: student of round 1", result.naive_accuracy)
    row("co-supervised: student of the last round", result.rounds[-1].metrics.student_accuracy, "bold green")
    for name, label in _BASELINES.items():
        if name in result.chains:
            row(label, result.chains[name][-1].metrics.student_accuracy)
    if "ceiling" in result.chains:
        row("strong ceiling: student of the ground truth", result.ceiling_accuracy)
    return table


def teachers_table(result: ExperimentResult) -> Table:
    """Every teacher inside and outside its specialty, on the test split."""
    table = Table(title="teachers (test accuracy)", title_justify="left")
    for name in ("level", "teacher", "overall", "inside its block", "outside"):
        table.add_column(name, justify="right")
    for t in result.teachers:
        table.add_row(str(t.level + 1), str(t.index), percent(t.overall), percent(t.inside), percent(t.outside))
    return table


def undefined_pgr(result: ExperimentResult) -> str | None:
    """Why there is no PGR; None where there is one."""
    if result.rounds[-1].metrics.pgr is not None:
        return None
    if result.ceiling_accuracy is None:
        return "PGR is not defined: no ceiling was trained (baselines: [ceiling])"
    return f"PGR is not defined: ceiling {percent(result.ceiling_accuracy)} <= weak {percent(result.weak_accuracy)}"


def passes_line(result: ExperimentResult) -> str:
    """What the teachers were asked, in one line."""
    rounds = [r.metrics for r in result.chains[MAIN]]
    asked, passes = sum(m.predictions_asked for m in rounds), sum(m.forward_passes for m in rounds)
    return f"teachers: {asked} predictions asked for in {len(rounds)} rounds, {passes} forward passes made for them"
