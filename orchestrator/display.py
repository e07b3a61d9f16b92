"""Where progress is shown: nowhere, or on a rich console."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console

from orchestrator.evaluation import RoundMetrics

_SECONDS_BETWEEN_EPOCH_LINES = 0.5


class Display(Protocol):
    """Receives progress."""

    def epoch(self, chain: str, number: int, rounds: int, epoch: int, epochs: int, loss: float) -> None:
        """An epoch of round ``number`` of ``rounds`` is done."""
        ...

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        """A round is done and evaluated."""
        ...

    def note(self, text: str) -> None:
        """Something else worth a line."""
        ...


class Silent:
    """Shows nothing."""

    def epoch(self, chain: str, number: int, rounds: int, epoch: int, epochs: int, loss: float) -> None:
        """Nothing."""

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Lines:
    """A line per round, and a line for the epochs between: at most two a second, so that logs stay readable."""

    def __init__(self, console: Console) -> None:
        self._console, self._last, self._start = console, 0.0, time.monotonic()

    def epoch(self, chain: str, number: int, rounds: int, epoch: int, epochs: int, loss: float) -> None:
        """A line, unless there was one just now."""
        if time.monotonic() - self._last < _SECONDS_BETWEEN_EPOCH_LINES and epoch < epochs:
            return
        self._last = time.monotonic()
        self._line(f"[dim]{chain:>8} round {number}/{rounds}  epoch {epoch}/{epochs}  loss {loss:.4f}[/dim]")

    def round(self, metrics: RoundMetrics, rounds: int) -> None:
        """A line with the numbers people look at first."""
        m = metrics
        self._line(
            f"[bold]{m.chain:>8} round {m.round}/{rounds}[/bold]  "
            f"labels right {percent(m.collective_accuracy)}  kept {percent(m.keep_rate)}  "
            f"student {percent(m.student_accuracy)}  PGR {percent(m.pgr)}"
            + ("  [cyan](stored)[/cyan]" if m.cached else f"  {sum(m.seconds.values()):.1f} s")
        )

    def note(self, text: str) -> None:
        """A line."""
        self._line(f"[yellow]{text}[/yellow]")

    def _line(self, text: str) -> None:
        self._console.print(
            f"[dim]{time.monotonic() - self._start:6.1f} s[/dim] {text}", highlight=False, soft_wrap=True
        )


def percent(share: float | None) -> str:
    """A share in 0..1 as per cent with one decimal; ``-`` where it is not defined."""
    return "-" if share is None else f"{100 * share:.1f} %"
