"""Can this space be run? Every mistake at once, before anything starts."""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from orchestrator.checks import check
from orchestrator.evaluation import RoundMetrics
from orchestrator.loading import parse
from orchestrator.registry import closest
from search_spaces.domains import KINDS, LISTS, Domain, as_domain
from search_spaces.space import SearchSpace, apply, axes

SELECTION_METRICS = ("student_validation_truth_accuracy", "student_supervision_agreement", "keep_rate")
"""Metrics a sweep may choose by: they look neither at test data nor at the ground truth of the student's samples."""

_NOT_VARIED = ("name", "storage", "tracking", "compute.ray_address")
"""Where results go: all trials of a sweep share it."""

_TOGETHER = (
    "data", "hierarchy", "rounds.assignment", "device", "compute", "baselines",
    "student.batch_size", "student.loss", "student.auxiliary_confidence",
)  # fmt: skip
"""Settings that `orchestrator.checks` compares with one another."""
_FILTERS = ("data", "rounds.filters")
"""Settings that it compares apart from those: filters with the classes of the data, and nothing else."""


def check_space(space: SearchSpace, base: Mapping[str, Any]) -> list[str]:
    """All mistakes of a space over a raw base tree, each ``"where: rule (got value)"``; empty when it can be run.

    Reads the data the trials name; starts nothing and writes nothing.
    """
    if as_domain(space.space) is not None:
        return [f"space: domains stand at settings, e.g. student: {{lr: {{...}}}} (got {space.space})"]
    varied = axes(space)
    malformed = [f"space.{_written(path)}: {p}" for path, domain in varied.items() for p in domain.problems()]
    sound = {path: domain for path, domain in varied.items() if domain.kind in LISTS or not domain.problems()}
    candidates = {path: domain.candidates() for path, domain in sound.items() if _has_values(domain)}
    problems = [*_metric_problems(space), *_seed_problems(space), *_search_problems(space, varied), *malformed]
    problems += _form_problems(space.space)
    problems += [
        f"space.{path}: must be the same for all trials; set it in the base configuration"
        for path in varied
        if _within(path, _NOT_VARIED)
    ]
    value_problems, good, bad = _value_problems(space, base, candidates)
    problems += value_problems
    problems += _contradictions(space, base, {path: values for path, values in good.items() if values}, bad)
    return list(dict.fromkeys(problems))


def _has_values(domain: Domain) -> bool:
    return domain.kind not in LISTS or (isinstance(domain.arguments, list) and bool(domain.arguments))


def _metric_problems(space: SearchSpace) -> list[str]:
    if space.metric in SELECTION_METRICS:
        return []
    hints = typing.get_type_hints(RoundMetrics)
    reported = [f.name for f in fields(RoundMetrics) if hints[f.name] in (float, float | None)]
    allowed = f"allowed: {', '.join(SELECTION_METRICS)}"
    if space.metric not in reported:
        near = closest(space.metric, list(SELECTION_METRICS))
        return [f"metric: no round reports it{near} ({allowed}; got {space.metric!r})"]
    if space.metric == "samples_per_second":
        return [f"metric: says how fast a round was, not how good ({allowed}; got {space.metric!r})"]
    return [
        "metric: cannot choose between trials, because it looks at test data or at the ground truth of the student's "
        f"samples ({allowed}; got {space.metric!r})"
    ]


def _seed_problems(space: SearchSpace) -> list[str]:
    found = []
    if repeated := sorted({seed for seed in space.seeds if space.seeds.count(seed) > 1}):
        found.append(f"seeds: each at most once (got {repeated} more than once)")
    for where, tree in (("space", space.space), ("base", space.base)):
        if "seed" in tree:
            found.append(f"{where}.seed: seeds are listed in `seeds` (got {tree['seed']!r})")
    return found


def _search_problems(space: SearchSpace, varied: Mapping[str, Domain]) -> list[str]:
    """Searcher, samples and domains that do not go together."""
    found = []
    drawn = [path for path, domain in varied.items() if domain.kind != "grid"]
    if space.searcher == "optuna":
        for path, domain in varied.items():
            if reason := domain.not_for_optuna():
                found.append(f"space.{_written(path)}: {reason} (got {domain.kind})")
        if len(space.seeds) > 1:
            found.append(
                f"seeds: searcher optuna takes one, or it would learn from trials that differ by luck alone "
                f"(got {list(space.seeds)})"
            )
        if not varied:
            found.append("space: searcher optuna needs at least one domain to search (got none)")
    if drawn and "samples" not in space.model_fields_set:
        hint = f", or use grid for space.{_written(drawn[0])}" if space.searcher == "grid" else ""
        found.append(f"samples: is required, because space.{_written(drawn[0])} is drawn at random{hint}")
    if not drawn and space.samples > 1 and space.searcher != "optuna":
        found.append(f"samples: must be 1, because nothing is drawn at random; use seeds (got {space.samples})")
    return found


def _form_problems(node: Any, where: str = "space") -> list[str]:
    """Mappings that were meant to be domains, and keys with dots."""
    found = []
    if isinstance(node, dict) and as_domain(node) is None:
        for key, value in node.items():
            if key in KINDS:
                found.append(f"{where}: a domain is a mapping with exactly one key (got {', '.join(map(str, node))})")
                break
            if "." in key:
                found.append(f"{where}: settings are nested, not dotted (got {key!r})")
            found += _form_problems(value, f"{where}.{key}")
    elif isinstance(node, list):
        for number, item in enumerate(node):
            found += _form_problems(item, f"{where}[{number}]")
    return found


def _value_problems(
    space: SearchSpace, base: Mapping[str, Any], candidates: Mapping[str, list[Any]]
) -> tuple[list[str], dict[str, list[Any]], set[str]]:
    """What the configuration refuses, one value at a time.

    Returns:
        (problems; per path the values that are fine; names of constants that are not)
    """
    first = {path: values[0] for path, values in candidates.items()}
    _, mistakes, bad = parse({**apply(space, base, first), "seed": 0})
    # a bad constant is bad in every trial; a bad value of an axis only in its own
    constant = [mistake for mistake in mistakes if _owner(_name(mistake), candidates) is None]
    problems = [_placed(mistake, space) for mistake in constant]
    good: dict[str, list[Any]] = {path: [] for path in candidates}
    for path, values in candidates.items():
        for value in values:
            _, found, _ = parse({**apply(space, base, {**first, path: value}), "seed": 0})
            own = [_placed(m, space) for m in found if _owner(_name(m), candidates) == path]
            # a value may also make a constant wrong, as another data set does with the options of the one before
            own += [
                _placed(m, space) + _described({path: value})
                for m in found
                if _owner(_name(m), candidates) is None and m not in constant
            ]
            problems += own
            if not own:
                good[path].append(value)
    return problems, good, {name for name in bad if _owner(name, candidates) is None}


def _contradictions(
    space: SearchSpace, base: Mapping[str, Any], good: Mapping[str, list[Any]], bad: set[str]
) -> list[str]:
    """Settings that do not fit together or do not fit the data, over all combinations that can differ in that.

    Splits depend on the seed by which samples they hold, not by how many, so one seed stands for all.
    """
    if any(name.split(".")[0] == "data" for name in bad):
        bad = bad | {"hierarchy", "rounds.filters"}  # nothing is known of the classes they must fit
    found: dict[str, str] = {}
    fixed = {path: values[0] for path, values in good.items()}
    no_validation = False
    for point in _points(good):
        config, mistakes, worse = parse({**apply(space, base, {**fixed, **point}), "seed": space.seeds[0]})
        checked = check(config)
        broken = bad | worse
        problems = [*mistakes, *checked.problems] if point and not bad else list(checked.problems)
        for problem in problems:
            if not any(problem.startswith(name) for name in broken):
                found.setdefault(_placed(problem, space), _described(point))
        known = checked.info.n_classes > 0 and not any(name.startswith("data") for name in broken)
        no_validation |= known and not checked.info.counts.get("validation")
    if no_validation and space.metric == "student_validation_truth_accuracy":
        found["metric: needs validation samples in the data (got 0), or another metric"] = ""
    return [problem + where for problem, where in found.items()]


def _points(good: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Combinations that have to be checked, each aspect once: checking reads the data, which may be large."""
    seen: set[str] = set()
    relevant = {path: v for path, v in good.items() if _within(path, (*_TOGETHER, *_FILTERS))}
    for values in itertools.product(*relevant.values()):
        point = dict(zip(relevant, values, strict=True))
        aspects = {json.dumps([g, {p: v for p, v in point.items() if _within(p, g)}]) for g in (_TOGETHER, _FILTERS)}
        if not aspects <= seen:
            seen |= aspects
            yield point


def _within(path: str, sections: tuple[str, ...]) -> bool:
    """Whether a path is one of the sections, inside one, or around one."""
    return any(f"{path}.".startswith(f"{s}.") or f"{s}.".startswith(f"{path}.") for s in sections)


def _written(path: str) -> str:
    """A path as people write it: items of lists in brackets."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".")).lstrip(".")


def _name(problem: str) -> str:
    return problem.partition(": ")[0]


def _owner(name: str, paths: Mapping[str, Any]) -> str | None:
    """The path whose value a mistake at ``name`` is about, or None."""
    dotted = name.replace("[", ".").replace("]", "")
    for path in paths:
        if f"{dotted}.".startswith(f"{path}.") or f"{path}.".startswith(f"{dotted}."):
            return path
    return None


def _placed(problem: str, space: SearchSpace) -> str:
    """A mistake of the configuration with the part of the space it comes from in front."""
    name = _name(problem).replace("[", ".").replace("]", "").split(".")
    for where, tree in (("space", space.space), ("base", space.base)):
        node: Any = tree
        depth = 0
        while depth < len(name) and isinstance(node, dict) and name[depth] in node:
            node, depth = node[name[depth]], depth + 1
        if depth and (depth == len(name) or not isinstance(node, dict) or as_domain(node) is not None):
            return f"{where}.{problem}{_meant(node, where)}"
    return problem


def _meant(node: Any, where: str) -> str:
    """A hint where a setting was given a mapping that looks like a misspelt domain."""
    if as_domain(node) is not None:
        return "; domains go under `space`" if where == "base" else ""
    if not isinstance(node, dict) or len(node) != 1:
        return ""
    (key,) = node
    return f"; if this is meant to be a domain: unknown {key!r}{closest(key, list(KINDS))} (known: {', '.join(KINDS)})"


def _described(point: Mapping[str, Any]) -> str:
    """Which trial a contradiction was found in."""
    settings = ", ".join(f"{_written(path)} = {json.dumps(value)}" for path, value in point.items())
    return f", in trials with {settings}" if settings else ""
