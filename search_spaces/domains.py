"""Domains at the leaves of a space, e.g. ``{loguniform: [1.0e-4, 1.0e-2]}``: what they look like, which mistakes
they can have, which values stand for them in a check, and the Ray Tune objects they become."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace

LISTS = ("grid", "choice")
_FLOATS = ("uniform", "quniform", "loguniform", "qloguniform", "normal")
_INTEGERS = ("randint", "qrandint", "lograndint")
KINDS = (*LISTS, *_FLOATS, *_INTEGERS)
_QUANTIZED = ("quniform", "qloguniform", "qrandint")
_LOGARITHMIC = ("loguniform", "qloguniform", "lograndint")
_NOT_IN_OPTUNA = {
    "grid": "a grid is not something Optuna can suggest from; use choice, or searcher: grid",
    "normal": "Optuna has no normal distribution; use uniform, or searcher: random",
    "qloguniform": "Optuna would drop the quantization; use loguniform, or searcher: random",
}
_SIGMAS = 6
"""A normal domain stands for the values within so many standard deviations (1 draw in 500 million is outside)."""

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Domain:
    """One leaf that varies: ``{kind: arguments}``, the argument list being that of ``ray.tune``."""

    kind: str
    arguments: Any

    def problems(self) -> list[str]:
        """Mistakes in the arguments themselves, each ``"rule (got value)"``."""
        if self.kind in LISTS:
            return self._list_problems()
        return self._number_problems()

    def candidates(self) -> list[Any]:
        """The values that stand for the domain in a check: all of a list, the two ends of a range of numbers."""
        if self.kind in LISTS:
            return list(self.arguments)
        if self.kind == "normal":
            mean, sd = self.arguments
            return [round(mean - _SIGMAS * sd, 12), round(mean + _SIGMAS * sd, 12)]
        low, high = self.arguments[:2]
        if self.kind in _QUANTIZED:
            first, last = self._multiples()
            q = self.arguments[2]
            low, high = first * q, last * q
        if self.kind in ("randint", "lograndint"):
            high -= 1  # Ray's integer ranges exclude their upper end unless they are quantized
        return [low, high] if self.kind in _INTEGERS else [float(low), float(high)]

    def to_tune(self) -> Any:
        """The ``ray.tune`` object."""
        from ray import tune

        if self.kind == "grid":
            return tune.grid_search(list(self.arguments))
        if self.kind == "choice":
            return tune.choice(list(self.arguments))
        return getattr(tune, "randn" if self.kind == "normal" else self.kind)(*self.arguments)

    def not_for_optuna(self) -> str | None:
        """Why Optuna cannot search this domain, or None."""
        if self.kind in ("quniform", "qrandint") and not self.problems():
            low, high, q = self.arguments
            if not all(math.isclose(end / q, round(end / q), abs_tol=1e-9) for end in (low, high)):
                return "low and high must be multiples of q, because Optuna counts its steps from low"
        return _NOT_IN_OPTUNA.get(self.kind)

    def _list_problems(self) -> list[str]:
        values = self.arguments
        if not isinstance(values, list) or not values:
            return [f"{self.kind} takes a list of at least one value (got {values!r})"]
        seen: list[Any] = []
        found = []
        for value in values:
            if any(value == other and type(value) is type(other) for other in seen):
                found.append(f"{self.kind} must list each value once (got {value!r} again)")
            seen.append(value)
        return found

    def _number_problems(self) -> list[str]:
        names = ["mean", "sd"] if self.kind == "normal" else ["low", "high"] + ["q"] * (self.kind in _QUANTIZED)
        what = "integers" if self.kind in _INTEGERS else "numbers"
        kinds: tuple[type, ...] = (int,) if self.kind in _INTEGERS else (int, float)
        given = self.arguments
        fits = isinstance(given, list) and len(given) == len(names)
        if not fits or not all(type(v) in kinds and math.isfinite(v) for v in given):
            return [f"{self.kind} takes [{', '.join(names)}], {len(names)} {what} (got {given!r})"]
        if self.kind == "normal":
            return [] if given[1] > 0 else [f"normal needs sd above 0 (got {given[1]})"]
        found = []
        if given[0] >= given[1]:
            found.append(f"{self.kind} needs low below high (got {given})")
        if self.kind in _LOGARITHMIC and given[0] <= 0:
            found.append(f"{self.kind} needs low above 0 (got {given[0]})")
        if self.kind in _QUANTIZED and given[2] <= 0:
            found.append(f"{self.kind} needs q above 0 (got {given[2]})")
        elif self.kind == "qrandint" and given[2] == 1:
            found.append("qrandint with q = 1 excludes high in Ray and includes it in Optuna; use randint (got 1)")
        elif self.kind in _QUANTIZED and not found and self._multiples()[0] >= self._multiples()[1]:
            found.append(f"{self.kind} needs at least two multiples of q between low and high (got {given})")
        return found

    def _multiples(self) -> tuple[int, int]:
        """The first and the last multiple of q in the range, as Ray rounds: inwards, but for floating-point dust."""
        low, high, q = self.arguments

        def nearest_or(value: float, otherwise: int) -> int:
            return round(value) if math.isclose(value, round(value)) else otherwise

        return nearest_or(low / q, math.ceil(low / q)), nearest_or(high / q, math.floor(high / q))


def as_domain(node: Any) -> Domain | None:
    """The domain a node of the tree is, or None: a mapping with exactly one key, which names a kind."""
    if isinstance(node, dict) and len(node) == 1:
        (kind, arguments), *_ = node.items()
        if kind in KINDS:
            return Domain(kind, arguments)
    return None


def find(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Domain]]:
    """Every domain of a tree with its path; list items are counted from 0."""
    domain = as_domain(tree)
    if domain is not None:
        yield path, domain
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from find(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from find(value, (*path, number))


def constants(tree: Any) -> Any:
    """The same tree without its domains (None in their place where they are items of a list)."""
    if isinstance(tree, dict):
        return {key: constants(value) for key, value in tree.items() if as_domain(value) is None}
    if isinstance(tree, list):
        return [None if as_domain(item) is not None else constants(item) for item in tree]
    return tree


def tune_domains(space: SearchSpace) -> dict[str, Any]:
    """Dotted path -> ``ray.tune`` object, ready to be the ``param_space`` of a Tuner.

    Seeds are a ``grid_search`` under ``"seed"``; a single seed is the plain number, because searchers such as Optuna
    take no grids.
    """
    from ray import tune

    from search_spaces.space import axes

    domains = {path: domain.to_tune() for path, domain in axes(space).items()}
    return {**domains, "seed": tune.grid_search(list(space.seeds)) if len(space.seeds) > 1 else space.seeds[0]}
