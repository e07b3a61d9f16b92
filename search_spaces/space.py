"""A search space: reading it from YAML, the settings of its trials, and how those go onto a base configuration."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import ConfigError
from orchestrator.loading import apply_overrides, read_yaml
from orchestrator.registry import closest
from search_spaces.domains import Domain, constants, find

_SHIPPED = Path(__file__).parent
_DEFAULT_DATA = "digits"


class SearchSpace(BaseModel):
    """What a sweep varies and how it chooses. `check_space` says whether it can be run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Name of the sweep; the file's name without ``.yaml`` unless given."""

    description: Annotated[str, Field(min_length=1)]
    """The question this space answers, for people."""

    metric: str
    """The field of a round's metrics that trials are compared by: never one that looks at test data."""

    mode: Literal["max", "min"]
    """Whether more or less of the metric is better."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    """Every setting is run once per seed."""

    samples: Annotated[int, Field(ge=1)] = 1
    """How often the random domains are drawn (for each point of the grids, if there are any)."""

    searcher: Literal["grid", "random", "optuna"] = "grid"
    """Every point of the grids; independent draws; or Optuna, which learns from the trials that are done."""

    scheduler: Literal["none", "asha", "median"] = "none"
    """Which trials are stopped early, after a round: none, the worse part (ASHA), those below the median."""

    base: dict[str, Any] = {}
    """Settings of every trial, over those of the base configuration."""

    space: dict[str, Any] = {}
    """The configuration tree with domains at the leaves; leaves that are no domain are constants."""


def available() -> list[str]:
    """Names of the shipped spaces."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """A shipped space by its name, or one from a YAML file. Only its form is checked: see `check_space`.

    Raises:
        ConfigError: no such space, or with all mistakes of its form.
    """
    text = str(name_or_path)
    known = available()
    path = _SHIPPED / f"{text}.yaml" if text in known else Path(text)
    if text not in known and not path.suffix and not path.is_file():
        raise ConfigError(
            [
                f"search space: no shipped space and no file has this name{closest(text, known)} (got {text!r}; "
                f"shipped: {', '.join(known)}; or give the path of a .yaml)"
            ],
            "the sweep",
        )
    tree = {"name": path.stem, **read_yaml(path)}
    try:
        # JSON mode: strict about types, yet lists become tuples
        return SearchSpace.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # a list is also "too short" when one of its items is wrong
        told = [e for e in found if e["type"] != "too_short" or not any(o["loc"][:-1] == e["loc"] for o in found)]
        raise ConfigError([_explain(item) for item in told], str(path)) from None


def axes(space: SearchSpace) -> dict[str, Domain]:
    """Dotted path -> domain of everything that varies, seeds apart; items of lists are numbered from 0."""
    return {".".join(map(str, path)): domain for path, domain in find(space.space)}


def is_grid(space: SearchSpace) -> bool:
    """Whether all trials are known beforehand: nothing is drawn at random."""
    return space.searcher != "optuna" and all(domain.kind == "grid" for domain in axes(space).values())


def trials(space: SearchSpace) -> list[dict[str, Any]]:
    """The overrides ``{dotted path: value, ..., "seed": seed}`` of every trial; the seed changes fastest.

    Raises:
        ValueError: the space has random domains, so that its trials are not known beforehand.
    """
    if not is_grid(space):
        raise ValueError(f"the trials of space {space.name!r} are drawn while it runs")
    varied = axes(space)
    points = itertools.product(*(domain.arguments for domain in varied.values()))
    return [
        {**dict(zip(varied, copy.deepcopy(point), strict=True)), "seed": seed}
        for point in points
        for seed in space.seeds
    ]


def trial_count(space: SearchSpace) -> int:
    """How many trials a sweep of this space starts."""
    grids = (len(domain.arguments) for domain in axes(space).values() if domain.kind == "grid")
    count = space.samples * len(space.seeds)
    for size in grids:
        count *= size
    return count


def apply(space: SearchSpace, base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The raw configuration tree of one trial, for `orchestrator.loading.parse`.

    From the weakest to the strongest: ``base`` (a raw tree), ``space.base``, the constants in ``space.space``, and
    the trial's ``overrides`` (dotted path -> value). Nothing that comes in is changed.
    """
    tree: dict[str, Any] = copy.deepcopy(dict(base))
    _merge(tree, space.base)
    _merge(tree, constants(space.space))
    for dotted, value in overrides.items():
        _set(tree, dotted.split("."), value)
    return tree


def override(space: SearchSpace, settings: Iterable[str]) -> SearchSpace:
    """The space with ``a.b=value`` settings of the command line over its own ``base``.

    Raises:
        ConfigError: with all mistakes; one is a setting that the space itself varies or fixes.
    """
    tree: dict[str, Any] = copy.deepcopy(space.base)
    settings = list(settings)
    problems = apply_overrides(tree, settings)
    own = [*axes(space), *_leaves(constants(space.space)), "seed"]
    for text in settings:
        dotted = text.partition("=")[0].strip()
        if clash := [p for p in own if f"{p}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{p}.")]:
            problems.append(f"--set {dotted}: the search space sets {clash[0]} itself")
    if problems:
        raise ConfigError(problems, "the sweep")
    return space.model_copy(update={"base": tree})


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merge(tree: dict[str, Any], over: Mapping[str, Any], top: bool = True) -> None:
    """Lay ``over`` onto ``tree`` in place, section by section; lists are replaced whole."""
    for key, value in over.items():
        below = tree.get(key)
        if not isinstance(below, dict) or not isinstance(value, dict):
            tree[key] = copy.deepcopy(value)
        elif top and key == "data" and "name" in value and value["name"] != below.get("name", _DEFAULT_DATA):
            tree[key] = copy.deepcopy(value)  # another data set has none of the options of the one before
        else:
            _merge(below, value, top=False)


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    node: Any = tree
    for key in keys[:-1]:
        if isinstance(node, list):
            node = node[int(key)]
        else:
            if not isinstance(node.get(key), dict | list):
                node[key] = {}
            node = node[key]
    if isinstance(node, list):
        node[int(keys[-1])] = copy.deepcopy(value)
    else:
        _merge(node, {keys[-1]: value}, top=node is tree)


def _explain(item: Mapping[str, Any]) -> str:
    """A mistake of the form, in the words of `orchestrator.loading`."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    if item["type"] == "missing":
        return f"{where}: is required"
    if item["type"] == "extra_forbidden":
        known = list(SearchSpace.model_fields)
        return f"{where}: unknown key{closest(where, known)} (known: {', '.join(known)})"
    message = item["msg"].replace("Input should", "must")
    message = message[:1].lower() + message[1:]
    if item["type"] == "literal_error":
        names = [name.strip("' ") for name in item["ctx"]["expected"].replace(" or ", ",").split(",")]
        message += closest(item["input"], names)
    return f"{where}: {message} (got {item['input']!r})"
