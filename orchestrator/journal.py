"""The run's journal: append-only JSON lines on local disk, written before anything is sent anywhere.

Each record has an id that says what it is (``metric/pgr/3``), so a record that is written again - after a crash, from
a cached round - is written once, with its first timestamp.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """Writer of a journal.

    Args:
        path: the file; an existing one is continued.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = {record["id"] for record, _ in read_journal(path)}
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, name: str, **content: Any) -> None:
        """Append a record unless one of the same id is there. None values are "not defined" and not written."""
        step = content.get("step")
        record_id = f"{kind}/{name}" if step is None else f"{kind}/{name}/{step}"
        if record_id in self._known or content.get("value", 0) is None:
            return
        self._known.add(record_id)
        record = {"id": record_id, "kind": kind, "name": name, "time": int(time.time() * 1000), **content}
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """(record, offset behind it) from a byte offset on; stops before a line that is still being written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def _drop_torn_line(path: Path) -> None:
    """A kill in the middle of a write leaves half a line; cut it off so that the next record starts clean."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
