"""Identity: hashes of settings and data, and the seeds of named random streams.

Two things are the same if and only if their digests are; file names never carry meaning.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(*parts: Any) -> str:
    """Hex sha256 (32 characters) of JSON-able parts, independent of the order of mapping keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def array_digest(array: NDArray[Any]) -> str:
    """Hex sha256 (32 characters) of an array's dtype, shape and C-order bytes."""
    h = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    h.update(np.ascontiguousarray(array).data.cast("B"))
    return h.hexdigest()[:32]


def source_digest(*files: Path) -> str:
    """Digest of source files: the code version of what they compute."""
    return digest([hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)])


def derive_seed(seed: int, *stream: str | int) -> int:
    """Seed in [0, 2**63) of the named random stream of a run.

    Streams are independent: asking for one more never shifts another, and nothing touches global generators.
    """
    text = json.dumps([seed, *stream])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *stream: str | int) -> np.random.Generator:
    """A numpy generator for the named stream of a run."""
    return np.random.default_rng(derive_seed(seed, *stream))
