"""Search spaces: the shipped ones, the settings of their trials, and every kind of mistake."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.checks import Checked
from orchestrator.config import ExperimentConfig
from orchestrator.errors import ConfigError
from orchestrator.loading import parse
from orchestrator.sweep_report import criterion_name
from search_spaces import (
    SELECTION_METRICS,
    SearchSpace,
    apply,
    available,
    axes,
    check_space,
    is_grid,
    load_space,
    override,
    trial_count,
    trials,
    tune_domains,
)
from search_spaces.domains import KINDS, Domain
from tests.helpers import small_arrays, write_folder

TRIALS = {"threshold_depth": 96, "local_global": 42, "assignment": 18, "student_lr": 20, "smoke": 4}
EXAMPLES: dict[str, tuple[str, list[Any]]] = {
    "grid": ("student.head", ["linear", "mlp"]),
    "choice": ("student.batch_size", [32, 64]),
    "uniform": ("teachers.lr", [0.01, 0.1]),
    "quniform": ("teachers.lr", [0.01, 0.1, 0.01]),
    "loguniform": ("student.lr", [1e-4, 1e-2]),
    "qloguniform": ("student.lr", [1e-3, 1e-1, 1e-3]),
    "normal": ("student.lr", [0.01, 0.001]),
    "randint": ("student.epochs", [1, 4]),
    "qrandint": ("student.epochs", [2, 8, 2]),
    "lograndint": ("student.hidden", [8, 64]),
}


def make_space(**fields: Any) -> SearchSpace:
    defaults = {"name": "mine", "description": "a test", "metric": SELECTION_METRICS[0], "mode": "max"}
    return SearchSpace.model_validate({**defaults, **fields}, strict=False)


def nested(path: str, leaf: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        leaf = {key: leaf}
    return dict(leaf)


def vary(path: str, kind: str, arguments: Any, **fields: Any) -> SearchSpace:
    """A space with one domain, drawn twice where it is random."""
    if kind != "grid":
        fields = {"searcher": "random", "samples": 2, **fields}
    return make_space(space=nested(path, {kind: arguments}), **fields)


def only_problem(space: SearchSpace, base: dict[str, Any] | None = None) -> str:
    problems = check_space(space, base or {})
    assert len(problems) == 1, problems
    return problems[0]


def parsed(space: SearchSpace, overrides: dict[str, Any]) -> Any:
    config, problems, _ = parse(apply(space, {}, overrides))
    assert not problems
    return config


# the shipped spaces


def test_all_files_are_known() -> None:
    assert set(available()) == set(TRIALS)


@pytest.mark.parametrize("name", sorted(TRIALS))
def test_shipped_spaces_can_be_run(name: str) -> None:
    space = load_space(name)
    assert check_space(space, {}) == []
    assert space.name == name
    assert len(space.description) > 60
    assert space.metric == "student_validation_truth_accuracy"
    assert trial_count(space) == TRIALS[name]
    if is_grid(space):
        made = trials(space)
        assert len(made) == TRIALS[name]
        configs = [parsed(space, overrides) for overrides in made]
        assert len({c.model_dump_json() for c in configs}) == len(configs)
        assert {c.seed for c in configs} == set(space.seeds)
    else:
        with pytest.raises(ValueError, match="drawn while it runs"):
            trials(space)


def test_threshold_depth_is_the_paper_s_question() -> None:
    space = load_space("threshold_depth")
    configs = [parsed(space, overrides) for overrides in trials(space)]
    assert {criterion_name(c.rounds.filters) for c in configs} == {"all", "top1", "top2", "top3"}
    assert {c.hierarchy.levels for c in configs} == {(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8)}
    assert {c.rounds.supervision for c in configs} == {"hard", "soft"}
    assert {c.baselines for c in configs} == {("ceiling",)}


def test_local_global_has_no_two_criteria_of_one_name() -> None:
    space = load_space("local_global")
    names = {criterion_name(parsed(space, overrides).rounds.filters) for overrides in trials(space)}
    assert len(names) == 14


def test_reading_and_checking_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from search_spaces import *; s = load_space('smoke'); assert not check_space(s, {}); trials(s);"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'optuna') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# loading


def test_a_space_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("description: d\nmetric: keep_rate\nmode: min\nspace: {student: {lr: {grid: [1e-3, 1e-2]}}}\n")
    space = load_space(file)
    assert (space.name, space.mode, space.seeds) == ("mine", "min", (0,))
    assert trials(space) == [{"student.lr": 1e-3, "seed": 0}, {"student.lr": 1e-2, "seed": 0}]
    assert load_space(str(file)) == space


def test_an_unknown_name_gets_the_closest_and_the_list() -> None:
    with pytest.raises(ConfigError) as error:
        load_space("treshold_depth")
    assert "did you mean 'threshold_depth'?" in str(error.value)
    assert all(name in str(error.value) for name in TRIALS)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be readable"):
        load_space(tmp_path / "nothing.yaml")


def test_all_mistakes_of_form_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    tree = {"mode": "maximum", "sheduler": "asha", "samples": 0, "seeds": ["0"], "searcher": "optun", "space": [1]}
    file.write_text(yaml.safe_dump({"metric": "keep_rate", **tree}))
    with pytest.raises(ConfigError) as error:
        load_space(file)
    problems = {p.partition(": ")[0]: p for p in error.value.problems}
    assert set(problems) == {"description", "mode", "sheduler", "samples", "seeds[0]", "searcher", "space"}
    assert "did you mean 'scheduler'?" in problems["sheduler"]
    assert "did you mean 'optuna'?" in problems["searcher"]
    assert problems["description"] == "description: is required"
    assert problems["samples"].endswith("(got 0)")


# trials and their settings


def test_precedence_and_nothing_that_comes_in_changes() -> None:
    space = make_space(
        base={"student": {"epochs": 3, "lr": 0.1}, "baselines": []},
        space={"student": {"lr": 0.2, "hidden": {"grid": [8, 16]}}},
    )
    base = {"student": {"epochs": 7, "batch_size": 9}, "name": "b"}
    before = copy.deepcopy((base, space.model_dump()))
    tree = apply(space, base, {"student.hidden": 16, "seed": 4})
    assert tree == {
        "name": "b",
        "seed": 4,
        "baselines": [],
        "student": {"epochs": 3, "lr": 0.2, "hidden": 16, "batch_size": 9},
    }
    tree["student"]["epochs"] = 99
    tree["baselines"].append("mean")
    assert (base, space.model_dump()) == before


def test_another_data_set_replaces_the_options_of_the_one_before() -> None:
    space = make_space(base={"data": {"name": "arrays", "path": "x"}})
    assert apply(space, {"data": {"rotations": 2}}, {})["data"] == {"name": "arrays", "path": "x"}
    same = make_space(base={"data": {"name": "digits", "components": 8}})
    assert apply(same, {"data": {"rotations": 2}}, {})["data"] == {"name": "digits", "components": 8, "rotations": 2}


def test_sections_may_vary_together() -> None:
    space = make_space(space={"student": {"grid": [{"lr": 0.1, "epochs": 2}, {"lr": 0.01, "epochs": 9}]}})
    assert check_space(space, {}) == []
    made = [apply(space, {"student": {"hidden": 5}}, t)["student"] for t in trials(space)]
    assert made == [{"hidden": 5, "lr": 0.1, "epochs": 2}, {"hidden": 5, "lr": 0.01, "epochs": 9}]


def test_a_domain_inside_a_list() -> None:
    leaf = [{"kind": "threshold", "probability": {"uniform": [0.2, 0.8]}, "of": "teacher"}, {"kind": "topk_rate"}]
    space = make_space(space={"rounds": {"filters": leaf}}, searcher="random", samples=3)
    assert check_space(space, {}) == []
    assert list(axes(space)) == ["rounds.filters.0.probability"]
    config = parsed(space, {"rounds.filters.0.probability": 0.3})
    assert criterion_name(config.rounds.filters) == "teacher p >= 0.3 + top3"
    bad = make_space(space={"rounds": {"filters": [{"kind": "threshold", "probability": {"grid": [0.5, 2.0]}}]}})
    assert only_problem(bad) == "space.rounds.filters[0].probability: must be less than 1 (got 2.0)"


def test_overrides_of_the_command_line_win_over_the_space_s_base() -> None:
    space = override(load_space("smoke"), ["student.epochs=9", "device=cpu"])
    tree = apply(space, {"student": {"epochs": 1}}, trials(space)[0])
    assert tree["student"]["epochs"] == 9
    assert tree["device"] == "cpu"
    with pytest.raises(ConfigError) as error:
        override(load_space("smoke"), ["hierarchy.levels=[1]", "rounds={}", "seed=3", "nonsense"])
    assert len(error.value.problems) == 4


def test_count_with_random_domains_and_grids() -> None:
    space = make_space(
        space={"student": {"head": {"grid": ["linear", "mlp"]}, "lr": {"uniform": [0.1, 0.2]}}},
        seeds=(0, 1),
        samples=3,
        searcher="random",
    )
    assert trial_count(space) == 12
    assert not is_grid(space)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_domain_draws_parses(kind: str) -> None:
    path, arguments = EXAMPLES[kind]
    space = vary(path, kind, arguments)
    assert check_space(space, {}) == []
    domain = tune_domains(space)[path]
    low, high = Domain(kind, arguments).candidates()
    np.random.seed(0)  # noqa: NPY002 - what Ray draws from
    drawn = domain["grid_search"] if kind == "grid" else [domain.sample() for _ in range(200)]
    for value in drawn:
        parsed(space, {path: value})
        assert value in (low, high) if kind in ("grid", "choice") else low <= value <= high
    if kind in ("grid", "choice", "randint", "qrandint", "lograndint"):
        assert {low, high} <= set(drawn)  # the values that are checked are the ends of what is drawn


def test_seeds_of_the_tuner() -> None:
    assert tune_domains(load_space("threshold_depth"))["seed"] == {"grid_search": [0, 1, 2]}
    assert tune_domains(load_space("student_lr"))["seed"] == 0
    domains = tune_domains(load_space("local_global"))
    assert len(domains["rounds.filters"]["grid_search"]) == 14


def test_tune_makes_the_same_trials() -> None:
    from ray.tune.search.variant_generator import generate_variants

    space = load_space("smoke")
    made = [config for _, config in generate_variants(tune_domains(space))]
    assert sorted(map(str, map(sorted, (m.items() for m in made)))) == sorted(
        map(str, map(sorted, (t.items() for t in trials(space))))
    )


def test_optuna_takes_what_the_check_lets_through() -> None:
    pytest.importorskip("optuna")
    from ray.tune.search.optuna import OptunaSearch

    for kind in KINDS:
        path, arguments = EXAMPLES[kind]
        space = vary(path, kind, arguments, searcher="optuna", samples=2)
        if Domain(kind, arguments).not_for_optuna() is None:
            assert check_space(space, {}) == []
            assert path in OptunaSearch.convert_search_space(tune_domains(space))
        else:
            assert only_problem(space).startswith(f"space.{path}: ")


# mistakes


@pytest.mark.parametrize(
    ("kind", "arguments", "rule"),
    [
        ("grid", [], "grid takes a list of at least one value (got [])"),
        ("grid", None, "grid takes a list of at least one value (got None)"),
        ("choice", 0.1, "choice takes a list of at least one value (got 0.1)"),
        ("grid", [0.1, 0.2, 0.1], "grid must list each value once (got 0.1 again)"),
        ("uniform", [0.1], "uniform takes [low, high], 2 numbers (got [0.1])"),
        ("uniform", ["a", "b"], "uniform takes [low, high], 2 numbers (got ['a', 'b'])"),
        ("uniform", [0.1, True], "uniform takes [low, high], 2 numbers (got [0.1, True])"),
        ("uniform", [0.1, float("inf")], "uniform takes [low, high], 2 numbers (got [0.1, inf])"),
        ("uniform", {"low": 1}, "uniform takes [low, high], 2 numbers (got {'low': 1})"),
        ("uniform", [0.2, 0.1], "uniform needs low below high (got [0.2, 0.1])"),
        ("uniform", [0.1, 0.1], "uniform needs low below high (got [0.1, 0.1])"),
        ("loguniform", [0, 0.1], "loguniform needs low above 0 (got 0)"),
        ("loguniform", [-1, 0.1], "loguniform needs low above 0 (got -1)"),
        ("quniform", [0.1, 0.2], "quniform takes [low, high, q], 3 numbers (got [0.1, 0.2])"),
        ("quniform", [0.1, 0.2, 0], "quniform needs q above 0 (got 0)"),
        ("quniform", [0.1, 0.2, 1], "quniform needs at least two multiples of q between low and high"),
        ("qrandint", [1, 5, 1], "qrandint with q = 1"),
        ("randint", [1, 2.5], "randint takes [low, high], 2 integers (got [1, 2.5])"),
        ("lograndint", [0, 5], "lograndint needs low above 0 (got 0)"),
        ("normal", [0.1, 0], "normal needs sd above 0 (got 0)"),
    ],
)  # fmt: skip
def test_arguments_of_domains(kind: str, arguments: Any, rule: str) -> None:
    assert only_problem(vary("student.lr", kind, arguments)).startswith(f"space.student.lr: {rule}")


@pytest.mark.parametrize(
    ("path", "kind", "arguments", "problems"),
    [
        ("student.hiden", "grid", [8, 16], ["space.student.hiden: unknown setting; did you mean 'hidden'?"]),
        ("studnt.lr", "grid", [0.1], ["space.studnt: unknown setting; did you mean 'student'?"]),
        ("student.head", "grid", ["linear", "tree", 3], ["must be 'linear' or 'mlp' (got 'tree')", "(got 3)"]),
        ("student.lr", "uniform", [-0.1, 0.1], ["space.student.lr: must be greater than 0 (got -0.1)"]),
        ("student.lr", "normal", [0.01, 0.01], ["space.student.lr: must be greater than 0 (got -0.05)"]),
        ("student.epochs", "uniform", [1, 9], ["a valid integer (got 1.0)", "a valid integer (got 9.0)"]),
        ("student.epochs", "randint", [0, 9], ["space.student.epochs: must be greater than or equal to 1 (got 0)"]),
        ("data.splits.test", "uniform", [0.1, 1.5], ["less than or equal to 1 (got 1.5)", "shares must sum to 1"]),
        ("rounds.filters", "grid", [[], [{"kind": "topk"}]], ["space.rounds.filters[0]: unknown kind 'topk'"]),
        ("rounds.filters", "grid", ["all", []], ["space.rounds.filters: "]),
        ("storage", "grid", ["a", "b"], ["space.storage: must be the same for all trials"]),
        ("tracking.enabled", "grid", [True, False], ["space.tracking.enabled: must be the same for all trials"]),
        ("student.lr", "gird", [0.1], ["unknown 'gird'; did you mean 'grid'?"]),
    ],
)  # fmt: skip
def test_values_the_configuration_refuses(path: str, kind: str, arguments: Any, problems: list[str]) -> None:
    found = check_space(vary(path, kind, arguments, searcher="grid", samples=2 - (kind in ("grid", "gird"))), {})
    assert len(found) == len(problems), found
    for text, problem in zip(problems, found, strict=True):
        assert text in problem


@pytest.mark.parametrize(
    "metric",
    [
        "student_accuracy", "pgr", "collective_accuracy", "assignment_accuracy", "filter_precision", "filter_recall",
        "samples_per_second", "epochs", "chain", "accuracy",
    ],
)  # fmt: skip
def test_metrics_that_cannot_choose(metric: str) -> None:
    problem = only_problem(make_space(metric=metric))
    assert all(name in problem for name in SELECTION_METRICS)
    assert problem.endswith(f"got {metric!r})")
    reported = metric not in ("epochs", "chain", "accuracy")
    assert ("no round reports it" in problem) is not reported


def test_a_misspelt_metric_gets_the_closest() -> None:
    assert "did you mean 'keep_rate'?" in only_problem(make_space(metric="keeprate"))


@pytest.mark.parametrize("metric", SELECTION_METRICS)
def test_metrics_that_may_choose(metric: str) -> None:
    assert check_space(make_space(metric=metric), {}) == []


def test_the_validation_metric_needs_validation_samples() -> None:
    base = {"data": {"splits": {"teacher": 0.3, "student": 0.5, "validation": 0.0, "test": 0.2}}}
    assert only_problem(make_space(), base).startswith("metric: needs validation samples in the data")
    assert check_space(make_space(metric="keep_rate"), base) == []


def test_seeds() -> None:
    assert only_problem(make_space(seeds=(0, 1, 0))) == "seeds: each at most once (got [0] more than once)"
    assert only_problem(vary("seed", "grid", [0, 1])).startswith("space.seed: seeds are listed in `seeds`")
    assert only_problem(make_space(base={"seed": 3})) == "base.seed: seeds are listed in `seeds` (got 3)"


def test_searchers() -> None:
    rate = {"student": {"lr": {"loguniform": [1e-4, 1e-2]}}}
    problem = only_problem(make_space(space=rate))
    assert problem.startswith("samples: is required, because space.student.lr is drawn at random, or use grid")
    assert only_problem(make_space(space=rate, searcher="random")).startswith("samples: is required")
    assert check_space(make_space(space=rate, samples=3), {}) == []
    two = make_space(space=rate, searcher="optuna", samples=3, seeds=(0, 1))
    assert only_problem(two).startswith("seeds: searcher optuna takes one")
    grid = make_space(space={"student": {**rate["student"], "head": {"grid": ["mlp"]}}}, searcher="optuna", samples=3)
    assert only_problem(grid).startswith("space.student.head: a grid is not something Optuna can suggest from")
    assert only_problem(make_space(searcher="optuna", samples=3)).startswith(
        "space: searcher optuna needs at least one"
    )
    steps = vary("student.epochs", "qrandint", [3, 9, 2], searcher="optuna")
    assert only_problem(steps).startswith("space.student.epochs: low and high must be multiples of q")
    repeated = vary("student.lr", "grid", [0.1], samples=2)
    assert only_problem(repeated).startswith("samples: must be 1, because nothing is drawn at random")


def test_forms_that_were_meant_to_be_domains() -> None:
    two = make_space(space={"student": {"lr": {"grid": [0.1], "choice": [0.2]}}})
    assert "a domain is a mapping with exactly one key (got grid, choice)" in check_space(two, {})[0]
    assert only_problem(make_space(space={"grid": [1]})).startswith("space: domains stand at settings")
    dotted = make_space(space={"student.lr": {"grid": [0.1]}})
    assert "space: settings are nested, not dotted (got 'student.lr')" in check_space(dotted, {})
    in_base = make_space(base={"student": {"lr": {"grid": [0.1]}}})
    assert only_problem(in_base).startswith("base.student.lr: must be a valid number")
    assert only_problem(in_base).endswith("domains go under `space`")


def test_contradictions_name_the_trial() -> None:
    space = make_space(
        space={
            "hierarchy": {"levels": {"grid": [[1, 2], [2, 4]]}},
            "rounds": {"assignment": {"grid": ["student", "mean"]}},
            "student": {"lr": {"grid": [0.1, 0.2]}},
        }
    )
    problem = only_problem(space)
    assert problem.startswith("space.hierarchy.levels[0]: the first level must have 1 teacher, because")
    assert problem.endswith('in trials with hierarchy.levels = [2, 4], rounds.assignment = "student"')


def test_contradictions_with_the_data_of_every_kind_at_once() -> None:
    space = make_space(
        base={"compute": {"backend": "inline"}},
        space={
            "compute": {"workers": {"grid": [1, 2]}},
            "hierarchy": {"levels": {"grid": [[1], [1, 50]]}},
            "rounds": {"filters": {"grid": [[], [{"kind": "topk_rate", "k": 41}]]}},
        },
    )
    found = check_space(space, {})
    assert len(found) == 3
    assert any("space.compute.workers: must be 1 when compute.backend = inline" in p for p in found)
    assert any("space.hierarchy.levels[1]: cannot be more than the 40 classes" in p for p in found)
    assert any("space.rounds.filters[0].k: cannot be more than the 40 classes" in p for p in found)


def test_data_of_one_s_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", small_arrays())
    base = {"data": {"name": "arrays", "path": str(folder)}}
    found = check_space(load_space("threshold_depth"), base)
    assert len(found) == 2, found
    assert found[0].startswith("space.hierarchy.levels[2]: the data holds 3 teachers for this level (got 4)")
    assert found[1].startswith("space.hierarchy.levels[3]: cannot be more than the 6 classes")
    assert check_space(load_space("assignment"), {**base, "hierarchy": {"levels": [1, 2, 3]}}) == []


def test_mistakes_of_the_base_are_told_once_and_without_the_space() -> None:
    found = check_space(load_space("threshold_depth"), {"studnt": 1, "student": {"lr": "fast"}})
    assert len(found) == 2
    assert found[0].startswith("student.lr: must be a valid number")
    assert found[1].startswith("studnt: unknown setting; did you mean 'student'?")


def test_checking_reads_large_data_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.checks import check

    calls = []

    def counted(config: ExperimentConfig) -> Checked:
        calls.append(config)
        return check(config)

    monkeypatch.setattr("search_spaces.checking.check", counted)
    assert check_space(load_space("threshold_depth"), {}) == []
    assert len(calls) <= 7  # 4 depths + 4 criteria - 1, not 96 trials


def test_all_mistakes_at_once() -> None:
    space = make_space(
        metric="pgr",
        seeds=(1, 1),
        space={
            "student": {"lr": {"loguniform": [0, 1]}, "hiden": {"grid": [1]}, "epochs": {"grid": []}},
            "rounds": {"assignment": {"grid": ["student", "nobody"]}, "filters": {"grid": [[{"kind": "x"}], []]}},
            "hierarchy": {"levels": {"grid": [[1, 99]]}},
        },
    )
    found = check_space(space, {})
    starts = [
        "metric: cannot choose", "seeds: each", "samples: is required", "space.student.lr: loguniform needs",
        "space.student.hiden: unknown", "space.student.epochs: grid takes", "space.rounds.assignment: must be",
        "space.rounds.filters[0]: unknown kind", "space.hierarchy.levels[1]: cannot be more",
    ]  # fmt: skip
    assert len(found) == len(starts), found
    for start in starts:
        assert any(p.startswith(start) for p in found), start
