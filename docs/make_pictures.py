"""Makes the pictures of the README: ``python docs/make_pictures.py`` (needs Chromium)."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.console import Console

from orchestrator import load_config, report, run_experiment
from orchestrator.display import Lines

PICTURES = Path(__file__).parent / "images"
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
PORT = 5057


def screenshot(url: str, target: Path, size: tuple[int, int], wait_ms: int = 0) -> None:
    """Render a page to a PNG."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "Chromium is needed to render pictures"
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", f"--screenshot={target}", f"--window-size={size[0]},{size[1]}"]
        options += [f"--virtual-time-budget={wait_ms}"] if wait_ms else []
        subprocess.run([browser, *CHROMIUM, *options, url], check=True, capture_output=True, timeout=120)


def main() -> None:
    """Run the default experiment, then take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as storage:
        console = Console(record=True, width=118, file=io.StringIO())
        console.print("$ make demo", highlight=False)
        result = run_experiment(load_config(None, [f"storage={storage}"]), display=Lines(console))
        console.print()
        console.print(report.rounds_table(result))
        console.print(report.baselines_table(result))
        svg = Path(storage) / "result.svg"
        lines = console.export_text(clear=False).count("\n")
        svg.write_text(console.export_svg(title="csl run"))
        height = 24.4 * (lines + 3)
        screenshot(svg.as_uri(), PICTURES / "result.png", (1480, int(height)))
        _mlflow(storage, result.path)


def _mlflow(storage: str, run_dir: Path) -> None:
    link = json.loads((run_dir / "delivered.json").read_text())
    server = subprocess.Popen([sys.executable, "-m", "orchestrator.cli", "ui", storage, "--port", str(PORT)])
    try:
        base = f"http://127.0.0.1:{PORT}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{base}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        run = f"{base}/#/experiments/1/runs/{link['run_id']}"
        screenshot(run, PICTURES / "mlflow_run.png", (1700, 1000), wait_ms=20000)
        screenshot(
            f"{run}/artifacts/figures/round_4_assignment.png", PICTURES / "mlflow_figure.png", (1500, 800), 20000
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
