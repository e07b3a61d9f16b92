"""``python -m orchestrator.tracking RUN_DIR``: the process that delivers a run while it goes on.

It wakes up when the first round is in the journal: importing MLflow costs seconds that the start of a run needs more.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

from orchestrator.journal import read_journal

_POLL_SECONDS = 0.25


def main() -> int:
    """Wait for the first round (or the end of the run), then deliver until the run is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    run_dir: Path = parser.parse_args().run_dir
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    os.nice(10)  # bookkeeping yields to training
    parent = os.getppid()
    offset, awake = 0, (run_dir / "space.yaml").exists()
    while not awake and os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
        for record, end in read_journal(run_dir / "journal.jsonl", offset):
            awake |= record["kind"] == "figure" or (record["kind"] == "status" and record["name"] != "RUNNING")
            offset = end
    from orchestrator.tracking.deliver import follow

    return follow(run_dir, parent)


if __name__ == "__main__":
    raise SystemExit(main())
