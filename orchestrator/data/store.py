"""A content-addressed folder: ``root/<key>/`` is either complete or not there.

Entries are written to a temporary folder and renamed, so a kill leaves nothing half-written; a lock file per
key lets one process make what the others wait for, and the lock of a process that dies is free at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from orchestrator.errors import StorageError

Arrays = dict[str, NDArray[Any]]


class Store:
    """Folder of immutable entries, one per key.

    Args:
        root: folder, created on first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the entry of ``key`` is or would be."""
        return self.root / key

    def get(self, key: str) -> Path | None:
        """Folder of a finished entry, or None."""
        path = self.path(key)
        return path if path.is_dir() else None

    def put(self, key: str, write: Callable[[Path], None]) -> Path:
        """Write an entry through ``write(temporary folder)`` and make it visible in one step.

        If another process finished the same key first, its entry stays (same key, same content).
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.root))
        try:
            write(temporary)
            temporary.chmod(0o755)
            try:
                os.rename(temporary, self.path(key))
            except OSError:
                if self.get(key) is None:
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self.path(key)

    def get_or_put(self, key: str, write: Callable[[Path], None]) -> Path:
        """The entry of ``key``, made once: whoever comes second waits for the first."""
        if (found := self.get(key)) is not None:
            return found
        with self.lock(key):
            return self.get(key) or self.put(key, write)

    def lock(self, key: str) -> FileLock:
        """Lock that serialises makers of ``key`` across processes; freed when its holder dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / f".{key}.lock")


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one safetensors file."""
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)


def load_arrays(path: Path) -> Arrays:
    """Read a file of `save_arrays`.

    Raises:
        StorageError: the file is missing or damaged; the message names it.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read as safetensors ({error}); remove it to make it again") from None
