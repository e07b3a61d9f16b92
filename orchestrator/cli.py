"""``csl``: parse, call, print, exit code. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.errors import ConfigError, CslError, Interrupted, StorageError

app = typer.Typer(
    name="csl",
    help="Co-supervised learning: a strong student taught by a hierarchy of weak, specialised teachers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Configuration; default: the embedded digits experiment.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a setting, e.g. --set student.lr=1e-3. May be repeated."),
]
Seed = Annotated[int | None, typer.Option(help="Shorthand for --set seed=N.")]
Storage = Annotated[Path, typer.Argument(help="Storage folder of the runs.")]


@app.command()
def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    seed: Seed = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute every round afresh.")] = False,
    teachers: Annotated[bool, typer.Option("--teachers", help="Also print every teacher's accuracy.")] = False,
) -> None:
    """Run one experiment, or go on with it where it stopped."""
    from orchestrator.display import Lines
    from orchestrator.experiment import run_experiment
    from orchestrator.loading import load_config

    console = _console()
    settings = load_config(config, overrides or (), seed)
    with _told_when_interrupted("the same command goes on after them"):
        result = run_experiment(settings, use_cache=not no_cache, display=Lines(console))
    from orchestrator import report  # tables come last; the start should not wait for them

    console.print()
    console.print(report.rounds_table(result))
    console.print(report.baselines_table(result))
    if (reason := report.undefined_pgr(result)) is not None:
        console.print(reason, highlight=False, soft_wrap=True)
    if teachers:
        console.print(report.teachers_table(result))
    for line in (report.passes_line(result), f"results: {result.path}", f"took {result.seconds:.1f} s"):
        console.print(line, highlight=False, soft_wrap=True)
    uri = result.tracking_uri
    # `make demo` runs the program inside .venv, which is on nobody's PATH
    program = "csl" if shutil.which("csl") else os.path.relpath(Path(sys.executable).parent / "csl")
    where = f"{program} ui {settings.storage}" if uri.startswith("sqlite") else uri
    console.print(f"see it in MLflow: [bold]{where}[/bold]", highlight=False, soft_wrap=True)


@app.command()
def validate(config: ConfigFile = None, overrides: Overrides = None, seed: Seed = None) -> None:
    """Check a configuration and its data, and print the plan. Starts nothing, writes nothing."""
    from orchestrator.checks import check
    from orchestrator.loading import load_config
    from orchestrator.plan import plan_tables

    settings = load_config(config, overrides or (), seed)
    for table in plan_tables(settings, check(settings)):
        _console().print(table)
    _console().print("[green]valid[/green]")


@app.command()
def sweep(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A shipped search space, or the path of a .yaml.")],
    config: Annotated[Path | None, typer.Option("--config", help="Configuration that the space varies.")] = None,
    overrides: Overrides = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: what fits.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Every trial computes all its rounds.")] = False,
) -> None:
    """Run a search space with Ray Tune; rounds that trials have in common are computed once."""
    from orchestrator.loading import read_yaml
    from search_spaces import load_space, override

    varied = override(load_space(space), overrides or ())
    base = read_yaml(config) if config is not None else {}
    from orchestrator import sweep_report  # Ray and pandas: only when the space is a valid file
    from orchestrator.sweep import run_sweep

    console = _console()
    with _told_when_interrupted("the same command with --resume goes on"):
        result = run_sweep(
            varied, base, concurrency=concurrency, resume=resume, use_cache=not no_cache, console=console
        )
    console.print(sweep_report.summary_table(result.table, varied.metric, varied.mode))
    console.print(f"rounds computed: {result.rounds_computed} of {len(result.table)} in the table", highlight=False)
    for trial, error in result.failures.items():
        console.print(f"[red]failed: {trial}: {error}[/red]", soft_wrap=True)
    if result.best is not None:
        console.print(f"best by {varied.metric}: {result.best}", highlight=False, soft_wrap=True)
    console.print(f"table, figures and trials: {result.path}", highlight=False, soft_wrap=True)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def sync(storage: Storage = Path("runs")) -> None:
    """Deliver to MLflow what a server that was down or slow has missed; each record exactly once."""
    from orchestrator.tracking.deliver import sync as deliver

    console = _console()
    if not storage.is_dir():
        raise StorageError(f"{storage}: is not a storage folder (`csl sync PATH` takes the folder runs are stored in)")
    journals = [*storage.glob("experiments/*/journal.jsonl"), *storage.glob("sweeps/*/journal.jsonl")]
    outcome = deliver(sorted(path.parent for path in journals))
    failed = {path: result for path, result in outcome.items() if isinstance(result, Exception)}
    console.print(f"{len(outcome)} runs, {sum(r for r in outcome.values() if isinstance(r, int))} records delivered")
    for path, error in failed.items():
        console.print(f"[red]{path.name}: {error}[/red]", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


cache = typer.Typer(help="Look after the stored rounds.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command("ls")
def cache_list(storage: Storage = Path("runs")) -> None:
    """How many finished rounds there are and how much room they take."""
    from orchestrator.round_cache import RoundCache

    entries = RoundCache(storage / "rounds").entries()
    for entry in entries:
        print(f"{entry.path.name}  {entry.size / 2**20:8.2f} MiB  last used {_ago(entry.used)} ago")
    print(f"{len(entries)} rounds, {sum(e.size for e in entries) / 2**20:.1f} MiB in {storage / 'rounds'}")


@cache.command("prune")
def cache_prune(
    storage: Storage = Path("runs"),
    max_gib: Annotated[float | None, typer.Option(min=0, help="Keep at most this many GiB, used last first.")] = None,
    unused_days: Annotated[float | None, typer.Option(min=0, help="Remove what was not used for so many days.")] = None,
) -> None:
    """Remove stored rounds; whoever needs one again computes it again."""
    import time

    from orchestrator.round_cache import RoundCache

    if max_gib is None and unused_days is None:
        raise ConfigError(["cache prune: needs --max-gib or --unused-days (got neither)"], "the command")
    since = None if unused_days is None else time.time() - unused_days * 86400
    removed = RoundCache(storage / "rounds").prune(None if max_gib is None else int(max_gib * 2**30), since)
    print(f"removed {len(removed)} rounds, {sum(e.size for e in removed) / 2**20:.1f} MiB")


def _ago(when: float) -> str:
    import time

    hours = (time.time() - when) / 3600
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


@app.command()
def ui(
    storage: Storage = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open MLflow on the runs of a storage folder (Ctrl-C ends it)."""
    import socket

    from orchestrator.tracking.start import default_uri, serve

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StorageError(f"{host}:{port}: cannot be listened on ({error}); choose another with --port") from None
    if not (storage / "mlflow.db").exists():
        raise StorageError(f"{storage}: holds no MLflow database yet: `csl run` makes one (or name another folder)")
    arguments = ["server", "--backend-store-uri", default_uri(str(storage)), "--host", host, "--port", str(port)]
    arguments += ["--default-artifact-root", (storage.resolve() / "mlartifacts").as_uri(), "--workers", "1"]
    _console().print(f"MLflow on [bold]http://{host}:{port}[/bold]")
    raise typer.Exit(serve(arguments))


@contextmanager
def _told_when_interrupted(what_next: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; finished rounds are stored, and {what_next}") from None


def _console() -> Any:
    from rich.console import Console

    # piped output has no width of its own: wide enough for every table
    return Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Entry point: errors a user can cause become one message and an exit code."""
    try:
        app()
    except CslError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
