"""Levels of teachers and their specialties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Blocks = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Level:
    """One level: teacher ``k`` is a specialist of the classes ``blocks[k]``; blocks partition the classes."""

    blocks: Blocks

    @property
    def n_teachers(self) -> int:
        """Number of teachers ``K`` of the level."""
        return len(self.blocks)

    def teacher_of_class(self) -> NDArray[np.int64]:
        """Class -> its teacher, int64 [C]."""
        owner = np.empty(sum(len(block) for block in self.blocks), dtype=np.int64)
        for teacher, block in enumerate(self.blocks):
            owner[list(block)] = teacher
        return owner


def even_blocks(n_classes: int, n_teachers: int, order: Sequence[int] | None = None) -> Blocks:
    """Cut the classes, in ``order``, into contiguous blocks whose sizes differ by at most one, larger ones first.

    No class is lost where the counts do not divide (21 classes / 8 teachers: 3 3 3 3 3 2 2 2).
    """
    classes = np.arange(n_classes) if order is None else np.asarray(order)
    return tuple(tuple(int(c) for c in block) for block in np.array_split(classes, n_teachers))


def block_problems(blocks: Blocks, n_classes: int) -> list[str]:
    """Why ``blocks`` is not a partition of the classes 0..C-1 into non-empty parts; empty if it is one."""
    found = [f"teacher {k} has an empty block" for k, block in enumerate(blocks) if not block]
    flat = [c for block in blocks for c in block]
    missing = sorted(set(range(n_classes)) - set(flat))
    unknown = sorted(set(flat) - set(range(n_classes)))
    repeated = sorted({c for c in flat if flat.count(c) > 1})
    if missing:
        found.append(f"no teacher covers classes {_short(missing)}")
    if unknown:
        found.append(f"classes {_short(unknown)} do not exist, there are {n_classes} (0..{n_classes - 1})")
    if repeated:
        found.append(f"classes {_short(repeated)} are in more than one block")
    return found


def _short(numbers: list[int]) -> str:
    head = ", ".join(str(n) for n in numbers[:6])
    return f"{head}, ... ({len(numbers)} in all)" if len(numbers) > 6 else head
