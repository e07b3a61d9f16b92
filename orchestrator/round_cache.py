"""Finished rounds under their keys: written atomically, found by whoever needs them, computed once.

`claim` is single flight: the first who wants a missing round gets to compute it, the others wait for the result;
if the first one dies, its lock is free and the next takes over.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from orchestrator.data.store import Arrays, Store, load_arrays, save_arrays
from orchestrator.errors import StorageError

if TYPE_CHECKING:
    from orchestrator.method.records import RoundOutput

_ARRAYS, _NUMBERS = "round.safetensors", "round.json"
_HEAD = "head."
_TENSORS = (
    "assigned",
    "top_classes",
    "teacher_confidence",
    "keep",
    "train_classes",
    "validation_classes",
    "test_classes",
    "test_curve",
)
_SCALARS = ("curve_epochs", "losses", "consensus", "asked", "forward_passes", "seconds", "trained_samples")


@dataclass(frozen=True)
class StoredRound:
    """A round as read from disk, without torch. Field names are those of `RoundOutput`."""

    key: str
    path: Path
    numbers: dict[str, Any]
    """Scalars: losses, consensus, seconds, counts."""
    arrays: Arrays
    """Per-sample arrays by name, and the head's weights as ``head.<name>``."""

    @property
    def head(self) -> Arrays:
        """The trained head's weights by parameter name."""
        return {name[len(_HEAD) :]: a for name, a in self.arrays.items() if name.startswith(_HEAD)}


@dataclass(frozen=True)
class CacheEntry:
    """A stored round, for people who look after the disk."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """When it was written or read last, seconds since the epoch."""


class RoundCache:
    """Rounds on disk.

    Args:
        root: folder of the cache.
    """

    def __init__(self, root: Path) -> None:
        self._store = Store(root)
        self._claimed: dict[str, FileLock] = {}

    def get(self, key: str) -> StoredRound | None:
        """The finished round, or None."""
        path = self._store.get(key)
        if path is None:
            return None
        with suppress(OSError):  # a store that is read only is still a store
            os.utime(path)  # what is used is kept longest
        return read_round(path)

    def entries(self) -> list[CacheEntry]:
        """All finished rounds, the one used last first."""
        folders = [path for path in self._store.root.glob("*") if path.is_dir() and not path.name.startswith(".")]
        found = [CacheEntry(p, sum(f.stat().st_size for f in p.iterdir()), p.stat().st_mtime) for p in folders]
        return sorted(found, key=lambda entry: -entry.used)

    def prune(self, max_bytes: int | None = None, unused_since: float | None = None) -> list[CacheEntry]:
        """Remove the rounds that were not used since a time, then those used longest ago until the rest fits.

        Args:
            max_bytes: what may stay; None: no limit.
            unused_since: seconds since the epoch; None: age does not matter.

        Returns:
            What was removed. A run that still needs one of them computes it again.
        """
        kept, removed = 0, []
        for entry in self.entries():
            too_old = unused_since is not None and entry.used < unused_since
            if too_old or (max_bytes is not None and kept + entry.size > max_bytes):
                removed.append(entry)
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                kept += entry.size
        return removed

    def has(self, key: str) -> bool:
        """Whether the round is finished."""
        return self._store.get(key) is not None

    def path(self, key: str) -> Path:
        """Folder of a round, finished or not."""
        return self._store.path(key)

    def claim(self, key: str) -> StoredRound | None:
        """The finished round, waiting for it if another process is at it; None: it is now the caller's to compute."""
        if (found := self.get(key)) is not None:
            return found
        lock = self._store.lock(key)
        lock.acquire()
        if (found := self.get(key)) is not None:
            lock.release()
            return found
        self._claimed[key] = lock
        return None

    def put(self, key: str, output: RoundOutput) -> Path:
        """Store a finished round and let those who wait for it go on."""
        path = self._store.put(key, lambda folder: _write(folder, key, output))
        self.release(key)
        return path

    def install(self, folder: Path) -> None:
        """Take over a round from a folder `put` wrote elsewhere (a Ray Train checkpoint)."""
        self._store.put(read_round(folder).key, lambda target: _copy(folder, target))

    def release_all(self) -> None:
        """Give up every claim, so that a round that failed is free for the next attempt."""
        for key in list(self._claimed):
            self.release(key)

    def release(self, key: str) -> None:
        """Give up a claim."""
        if (lock := self._claimed.pop(key, None)) is not None:
            lock.release()


def read_round(path: Path) -> StoredRound:
    """Read a round's folder.

    Raises:
        StorageError: a file is missing or damaged.
    """
    try:
        content = json.loads((path / _NUMBERS).read_text())
        return StoredRound(content["key"], path, content["numbers"], load_arrays(path / _ARRAYS))
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path}: not a readable round ({error}); remove the folder to compute it again") from None


def to_output(stored: StoredRound) -> RoundOutput:
    """A stored round as tensors, to open the next round with."""
    import torch

    from orchestrator.method.records import RoundOutput

    fields: dict[str, Any] = {name: torch.from_numpy(stored.arrays[name]) for name in _TENSORS}
    fields |= {k: tuple(v) if isinstance(v, list) else v for k, v in stored.numbers.items()}
    return RoundOutput(head={k: torch.from_numpy(v) for k, v in stored.head.items()}, **fields)


def _write(folder: Path, key: str, output: RoundOutput) -> None:
    arrays = {name: getattr(output, name).numpy() for name in _TENSORS}
    arrays |= {_HEAD + name: weight.numpy() for name, weight in output.head.items()}
    save_arrays(folder / _ARRAYS, arrays)
    numbers = {name: getattr(output, name) for name in _SCALARS}
    (folder / _NUMBERS).write_text(json.dumps({"key": key, "numbers": numbers}))


def _copy(source: Path, target: Path) -> None:
    for name in (_ARRAYS, _NUMBERS):
        (target / name).write_bytes((source / name).read_bytes())
