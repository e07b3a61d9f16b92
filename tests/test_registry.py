"""Plug-ins: registering a name makes it valid at once; mistakes are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from orchestrator.filters import FILTERS, FilterOptions, bind
from orchestrator.loading import parse
from orchestrator.registry import Registry, closest


class Options(BaseModel):
    kind: Literal["first"] = "first"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[str]:
    monkeypatch.setattr(Registry, "all", [])
    return Registry("thing", key="kind")


def test_look_up(registry: Registry[str]) -> None:
    registry.register(Options)("builder")
    assert registry.builder("first") == "builder"
    assert registry.options("first") is Options
    assert list(registry) == ["first"]


def test_duplicates_are_refused(registry: Registry[str]) -> None:
    registry.register(Options)("builder")
    with pytest.raises(ValueError, match="thing 'first' is already registered by Options"):
        registry.register(Options)


def test_options_without_a_name_are_refused(registry: Registry[str]) -> None:
    class Nameless(BaseModel):
        kind: str

    with pytest.raises(ValueError, match="Nameless needs `kind"):
        registry.register(Nameless)


def test_unknown_name_lists_what_exists(registry: Registry[str]) -> None:
    registry.register(Options)("builder")
    with pytest.raises(KeyError, match=r"unknown thing 'frist'; did you mean 'first'\?; registered: first.*register"):
        registry.builder("frist")


@pytest.mark.parametrize(("name", "expected"), [("studnt", "; did you mean 'student'?"), ("xyz", ""), (3, "")])
def test_closest(name: object, expected: str) -> None:
    assert closest(name, ["student", "teacher"]) == expected


def test_a_filter_registered_later_is_valid_in_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FILTERS, "_entries", dict(FILTERS._entries))

    class Nothing(FilterOptions):
        kind: Literal["nothing"] = "nothing"
        share: Annotated[float, Field(gt=0)] = 1.0

    _, problems, _ = parse({"rounds": {"filters": [{"kind": "nothing"}]}})
    assert len(problems) == 1
    FILTERS.register(Nothing)(lambda signals, options: options.share)  # type: ignore[arg-type, return-value]
    try:
        config, problems, _ = parse({"rounds": {"filters": [{"kind": "nothing", "share": 0.25}]}})
        assert problems == []
        assert config.to_dict()["rounds"]["filters"] == [{"kind": "nothing", "share": 0.25}]
        assert bind(config.rounds.filters)[0](None) == 0.25  # type: ignore[arg-type]
        _, problems, _ = parse({"rounds": {"filters": [{"kind": "nothing", "share": 0}]}})
        assert problems == ["rounds.filters[0].share: must be greater than 0 (got 0)"]
    finally:
        FILTERS.version += 1  # the next parse builds the schema anew, without it
        monkeypatch.undo()
        parse({})


PLUG_IN = """
import sys
from typing import Literal
from orchestrator.config import ExperimentConfig
from orchestrator.data import DATASETS
from orchestrator.data.registry import DatasetOptions
from orchestrator.filters import FILTERS, FilterOptions
from orchestrator.loading import parse

class Data(DatasetOptions):
    name: Literal["mine"] = "mine"

class Filter(FilterOptions):
    kind: Literal["mine"] = "mine"

if sys.argv[1] == "late":
    parse({})
DATASETS.register(Data)(object())
FILTERS.register(Filter)(object())
tree = {"data": {"name": "mine"}} if sys.argv[2] == "dataset" else {"rounds": {"filters": [{"kind": "mine"}]}}
print(parse(tree)[1])
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("what", ["dataset", "filter"])
def test_plug_ins_are_valid_before_and_after_the_first_parse(what: str, when: str) -> None:
    """In a process of its own: what counts is whether a configuration was read before the registration."""
    command = [sys.executable, "-c", PLUG_IN, when, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"
