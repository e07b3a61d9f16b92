"""Reading a configuration: YAML and ``--set`` into an `ExperimentConfig`, with every mistake reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.config import BUILT_WITH, ExperimentConfig, RoundsConfig
from orchestrator.errors import ConfigError
from orchestrator.registry import Registry, closest

Raw = dict[str, Any]
_MAX_REPAIRS = 50
_built_with = BUILT_WITH


class _Loader(yaml.SafeLoader):
    """Safe YAML with two traps closed: ``1e-3`` is a number, and a repeated key is an error."""


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Raw:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
    return {str(k): loader.construct_object(v, deep=True) for k, (_, v) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path) -> Raw:
    """A YAML file whose top level is a mapping.

    Raises:
        ConfigError: not there, not YAML, not a mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"config file: must be readable ({error})"], str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"YAML: {' '.join(str(error).split())}"], str(path)) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError([f"top level: must be a mapping of settings (got {type(raw).__name__})"], str(path))
    return raw


def apply_overrides(raw: Raw, overrides: Iterable[str]) -> list[str]:
    """Apply ``a.b=value`` (value in YAML) in place; returns the mistakes."""
    problems = []
    for text in overrides:
        dotted, equals, value = text.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"--set: must look like section.field=value (got {text!r})")
            continue
        node: Any = raw
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                problems.append(f"--set {dotted}: {key!r} is not a section")
                break
        else:
            try:
                node[keys[-1]] = yaml.load(value, _Loader)
            except yaml.YAMLError:
                problems.append(f"--set {dotted}: value must be YAML (got {value!r})")
    return problems


def parse(raw: Raw) -> tuple[ExperimentConfig, list[str], set[str]]:
    """Parse a raw tree.

    Returns:
        (the configuration, with every bad field at its default; the mistakes; the names of the bad fields).
    """
    _rebuild_if_registered()
    tree = json.loads(json.dumps(raw, default=str))
    if isinstance(tree.get("data"), dict):
        tree["data"].setdefault("name", "digits")
    problems: dict[str, str] = {}
    for _ in range(_MAX_REPAIRS):
        try:
            # JSON mode: strict about types, yet lists become tuples
            config = ExperimentConfig.model_validate_json(json.dumps(tree), strict=True)
            return config, list(problems.values()), set(problems)
        except ValidationError as error:
            found = [(_plain_location(item["loc"], tree), item) for item in error.errors(include_url=False)]
            before = json.dumps(tree)
            for loc, item in found:
                in_items = item["type"] == "too_short" and any(o[: len(loc)] == loc and o != loc for o, _ in found)
                if not in_items:  # a list is also "too short" when one of its items is wrong
                    problems.setdefault(_dotted(loc), f"{_dotted(loc)}: {_explain(item, loc)}")
            for loc, _ in found:
                _remove(tree, loc)
            if json.dumps(tree) == before:  # something required is missing: take its section out instead
                for loc, _ in found:
                    _remove(tree, loc[:-1])
    raise ConfigError(list(problems.values()))


def load_config(path: Path | None = None, overrides: Iterable[str] = (), seed: int | None = None) -> ExperimentConfig:
    """The checked configuration of a file (None: the embedded default) with overrides.

    Raises:
        ConfigError: with all mistakes, in the settings and in the data they name.
    """
    from orchestrator.checks import check  # reads data: only when a config is really used

    raw = read_yaml(path) if path is not None else {}
    problems = apply_overrides(raw, overrides)
    if seed is not None:
        raw["seed"] = seed
    parsed, mistakes, bad = parse(raw)
    problems += mistakes
    if any(name.split(".")[0] == "data" for name in bad):
        bad |= {"hierarchy", "rounds.filters"}  # nothing is known of the classes they must fit
    problems += [p for p in check(parsed).problems if not any(p.startswith(name) for name in bad)]
    if problems:
        raise ConfigError(problems, str(path) if path is not None else "the configuration")
    return parsed


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def dump_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML, in the order of its fields; `read_yaml` gives the same tree back."""
    tree = config.model_dump(mode="json", serialize_as_any=True)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _rebuild_if_registered() -> None:
    """Let plug-ins that were registered after the import of `config` into the schema."""
    global _built_with
    version = Registry.total_version()
    if _built_with != version:
        RoundsConfig.model_rebuild(force=True)  # before the tree that contains it
        ExperimentConfig.model_rebuild(force=True)
    _built_with = version


def _plain_location(loc: tuple[int | str, ...], tree: Raw) -> tuple[int | str, ...]:
    """Location without the tags and type names pydantic adds for unions: what the user wrote."""
    plain: list[int | str] = []
    node: Any = tree
    for i, part in enumerate(loc):
        is_tag = isinstance(node, dict) and part not in node and part in (node.get("name"), node.get("kind"))
        if is_tag and i < len(loc) - 1:
            continue  # of a plug-in section
        if isinstance(part, str) and not isinstance(node, dict):
            break  # a union branch such as "constrained-int"
        plain.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
    return tuple(plain)


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "top level"


def _explain(item: Mapping[str, Any], loc: tuple[int | str, ...]) -> str:
    """The rule that is broken and the value received."""
    kind, context, got = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        known = _known_fields(loc[:-1], item["loc"])
        return f"unknown setting{closest(loc[-1], known)} (known: {', '.join(known)})"
    if kind == "missing":
        return "is required"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'")
        tags = [t.strip(" '") for t in context.get("expected_tags", "").split(",") if t]
        if kind == "union_tag_not_found":
            return f"needs `{key}`"
        return f"unknown {key} {context['tag']!r}{closest(context['tag'], tags)} (known: {', '.join(tags)})"
    if loc[:2] == ("hierarchy", "levels") and len(loc) > 2:
        return f"must be a number of teachers, at least 1, or class blocks such as [[0, 1], [2, 3]] (got {got!r})"
    message = item["msg"].replace("Input should", "must").replace("Value error, ", "")
    message = message[:1].lower() + message[1:]
    if kind == "literal_error":
        message += closest(got, re.findall(r"'([^']+)'", context.get("expected", "")))
    if kind == "string_pattern_mismatch":
        message = f"must match {context['pattern']}"
    return f"{message} (got {got!r})"


def _known_fields(parents: tuple[int | str, ...], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at ``parents``; ``loc`` carries the tags that choose plug-in sections."""
    model: Any = ExperimentConfig
    tags = [str(part) for part in loc]
    for registry in Registry.all:
        for name in registry:
            if parents and name in tags and (parents[0] == "data") == (registry.key == "name"):
                model, parents = registry.options(name), parents[1:] if registry.key == "name" else ()
    for part in parents:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return list(model.model_fields)


def _remove(tree: Any, loc: tuple[int | str, ...]) -> None:
    """Take a bad value out, so that the rest can be checked in the same pass; a bad list item takes its list along."""
    for stop, part in enumerate(loc):
        if isinstance(part, int):
            loc = loc[:stop]
            break
    node = tree
    for part in loc[:-1]:
        if not isinstance(node, dict) or part not in node:
            return
        node = node[part]
    if loc and isinstance(node, dict):
        node.pop(loc[-1], None)
