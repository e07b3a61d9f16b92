"""The configuration: every field, every mistake, all of them at once, in the user's own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.checks import check
from orchestrator.config import ExperimentConfig
from orchestrator.errors import ConfigError
from orchestrator.loading import apply_overrides, dump_yaml, load_config, parse, read_yaml
from tests.helpers import make_config, merged, small_arrays, small_tree, write_folder


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


LEAVES = tuple(_leaves(ExperimentConfig().to_dict()))

BAD: dict[str, list[Any]] = {
    "name": [1, None, "", "-x", "a b", "a/b", "x" * 65],
    "seed": ["0", 1.5, True, None, -1, 2**63],
    "device": ["gpu", 0, None, "CPU"],
    "storage": [3, None, ""],
    "data.name": ["nothing", 3, None],
    "data.rotations": ["4", 2.5, True, 0, 5],
    "data.fourier_features": ["64", 0, -1, 1.5],
    "data.fourier_scale": ["a", 0, -0.1, True, float("inf"), float("nan")],
    "data.components": ["64", 0, 1.5],
    "data.splits.teacher": ["a", -0.1, 1.1, None],
    "data.splits.student": ["a", -0.1, 1.1],
    "data.splits.validation": ["a", -0.1, 1.1],
    "data.splits.test": ["a", -0.1, 1.1],
    "hierarchy.levels": [4, None, [], "1,2", [0], [1, -2], [1, "2"], [1, 2.5], [1, [0, 1]], [1, [["a"]]], [True]],
    "hierarchy.class_order": [3, "012", [0, "1"], [0, 1.5]],
    "teachers.kind": ["tree", 1, None],
    "teachers.steps": ["40", 0, -1, 1.5, None],
    "teachers.lr": ["a", 0, -1.0, float("nan"), None],
    "teachers.batch_size": ["32", 0, 1.5],
    "student.head": ["tree", 1, None],
    "student.hidden": ["512", 0, 1.5],
    "student.epochs": ["20", 0, -1, 1.5, None],
    "student.lr": ["a", 0, -1.0, float("inf"), None],
    "student.batch_size": ["100", 0, 1.5],
    "student.loss": ["hinge", 1],
    "student.auxiliary_confidence.alpha": ["a", -0.1, 1.1],
    "student.auxiliary_confidence.warmup": ["a", -0.1, 1.1],
    "student.precision": ["fp16", 32],
    "student.test_curve_every": ["1", -1, 1.5],
    "rounds.supervision": ["medium", 1, True],
    "rounds.assignment": ["random", 1, None],
    "rounds.filters": [
        3,
        "topk_rate",
        [3],
        [{}],
        [{"kind": "nothing"}],
        [{"kind": "topk_rate", "k": 0}],
        {"kind": "topk_rate"},
    ],
    "rounds.on_empty": ["stop", True],
    "baselines": ["ceiling", 3, ["roof"], [1]],
    "compute.backend": ["ray", 1],
    "compute.workers": ["2", 0, 1.5],
    "compute.cpus_per_worker": ["2", 0, 1.5],
    "compute.gpus_per_worker": ["a", -1],
    "compute.teacher_actors": ["2", 0, 1.5],
    "compute.cpus_per_teacher_actor": ["a", -0.5],
    "compute.max_failures": ["2", -1, 1.5],
    "compute.ray_address": [3, ["auto"]],
    "tracking.enabled": ["yes", 1, None],
    "tracking.uri": [3],
    "tracking.experiment": ["", 3, None],
    "tracking.wait_seconds": ["a", -1.0, float("inf")],
}


def _problems(tree: dict[str, Any]) -> list[str]:
    return parse(tree)[1]


def test_every_field_has_bad_values() -> None:
    assert set(BAD) == set(LEAVES)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in [*values, {"x": 1}]])
def test_bad_value_is_named_with_its_field(name: str, value: Any) -> None:
    problems = _problems(merged({}, {}) | _tree(name, value))
    assert len(problems) == 1, problems
    assert problems[0].startswith("data: unknown name" if name == "data.name" else name), problems
    assert len(problems[0]) > len(name) + 8, "says the rule"


def _tree(dotted: str, value: Any) -> dict[str, Any]:
    """One dotted setting as a tree; unlike `merged` it also takes infinity."""
    *sections, last = dotted.split(".")
    tree: dict[str, Any] = {last: value}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"student": {"lr": -1}}, "student.lr: must be greater than 0 (got -1)"),
        ({"student": {"epochs": 0}}, "student.epochs: must be greater than or equal to 1 (got 0)"),
        ({"seed": "x"}, "seed: must be a valid integer (got 'x')"),
        ({"rounds": {"assignment": "studnt"}}, "did you mean 'student'"),
        ({"rounds": {"filters": [{"kind": "topk_rat"}]}}, "did you mean 'topk_rate'"),
        ({"data": {"name": "digts"}}, "unknown name 'digts'; did you mean 'digits'"),
        ({"data": {"name": "digts"}}, "known: arrays, digits"),
        ({"hierarchy": {"levels": [1, 0]}}, "hierarchy.levels[1]: must be a number of teachers, at least 1, or "),
        (
            {"rounds": {"filters": [{"kind": "topk_rate", "k": 0}]}},
            "rounds.filters[0].k: must be greater than or equal",
        ),
        ({"rounds": {"filters": [{"k": 1}]}}, "rounds.filters[0]: needs `kind`"),
        ({"name": "a b"}, "name: must match"),
        ({"student": 3}, "student: "),
        ({"data": 3}, "data: "),
    ],
)
def test_messages(tree: dict[str, Any], expected: str) -> None:
    (problem,) = _problems(tree)
    assert expected in problem


@pytest.mark.parametrize(
    ("dotted", "suggestion"),
    [
        ("sed", "seed"),
        ("studnt", "student"),
        ("student.epoch", "epochs"),
        ("student.auxiliary_confidence.alfa", "alpha"),
        ("teachers.step", "steps"),
        ("rounds.filter", "filters"),
        ("hierarchy.level", "levels"),
        ("compute.worker", "workers"),
        ("tracking.url", "uri"),
        ("data.rotation", "rotations"),
        ("data.splits.studnt", "student"),
    ],
)
def test_unknown_name_suggests_the_closest(dotted: str, suggestion: str) -> None:
    (problem,) = _problems(_tree(dotted, 1))
    assert problem.startswith(f"{dotted}: unknown setting; did you mean {suggestion!r}? (known: "), problem


def test_unknown_option_of_a_filter_and_of_arrays() -> None:
    (problem,) = _problems({"rounds": {"filters": [{"kind": "threshold", "probabilty": 0.3}]}})
    assert problem.startswith("rounds.filters[0].probabilty: unknown setting; did you mean 'probability'?")
    (problem,) = _problems({"data": {"name": "arrays", "path": "x", "standardise": True}})
    assert problem.startswith("data.standardise: unknown setting; did you mean 'standardize'?")


def test_all_mistakes_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "seed: -1\nstudnt: {}\nstudent: {lr: 0, epochs: many}\nhierarchy: {levels: [1, 400]}\n"
        "rounds: {assignment: studnt, filters: [{kind: topk_rate, k: 0}]}\nteachers: {steps: 0, stepz: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["compute.workers=0", "nonsense"])
    starts = (
        "--set: must look like section.field=value (got 'nonsense')", "seed:", "studnt:", "student.lr:",
        "student.epochs:", "rounds.assignment:", "rounds.filters[0].k:", "hierarchy.levels[1]: cannot be more",
        "teachers.steps:", "teachers.stepz:", "compute.workers:",
    )  # fmt: skip
    for start in starts:
        assert sum(p.startswith(start) for p in caught.value.problems) == 1, (start, caught.value.problems)
    assert len(caught.value.problems) == len(starts)
    assert str(caught.value).startswith(f"11 mistakes in {path}:")
    assert caught.value.exit_code == 2


def test_a_missing_required_field_hides_no_other_mistake(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("seed: -1\ndata: {name: arrays}\nbaselines: [mean, mean]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["nonsense"])
    assert str(caught.value).startswith(f"4 mistakes in {path}:")
    starts = ("--set: must look like", "seed:", "data.path: is required", "baselines: each at most once")
    for start in starts:
        assert sum(p.startswith(start) for p in caught.value.problems) == 1, caught.value.problems


def test_levels_are_not_held_against_the_default_data(tmp_path: Path) -> None:
    """When the data cannot be understood, nothing is known of its classes."""
    path = tmp_path / "bad.yaml"
    path.write_text("data: {name: arays, path: x.npz}\nhierarchy: {levels: [1, 50]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [p.split(":")[0] for p in caught.value.problems] == ["data"]


class TestChecks:
    """Settings that are fine alone and wrong together, or for the data."""

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (
                {"compute.backend": "inline", "compute.workers": 2},
                "compute.workers: must be 1 when compute.backend = inline",
            ),
            (
                {"compute.workers": 8, "student.batch_size": 4},
                "compute.workers: cannot be more than student.batch_size = 4 (got 8)",
            ),
            ({"device": "cpu", "compute.gpus_per_worker": 1}, "compute.gpus_per_worker: must be 0 when device = cpu"),
            ({"device": "cuda"}, "compute.gpus_per_worker: must be above 0 when device = cuda"),
            ({"student.auxiliary_confidence.alpha": 0.2}, "student.auxiliary_confidence: has no effect unless"),
            ({"baselines": ["mean", "mean"]}, "baselines: each at most once"),
            (
                {"hierarchy.levels": [1, 41]},
                "hierarchy.levels[1]: cannot be more than the 40 classes of the data (got 41)",
            ),
            ({"hierarchy.levels": [2, 4]}, "hierarchy.levels[0]: the first level must have 1 teacher"),
            (
                {"hierarchy.levels": [2], "rounds.assignment": "soft"},
                "hierarchy.levels[0]: the first level must have 1 teacher",
            ),
            ({"hierarchy.levels": [1, [[0, 1], [2, 3]]]}, "hierarchy.levels[1]: no teacher covers classes 4, 5"),
            (
                {"hierarchy.levels": [1, [list(range(40)), [3]]]},
                "hierarchy.levels[1]: classes 3 are in more than one block",
            ),
            ({"hierarchy.levels": [1, [list(range(41))]]}, "hierarchy.levels[1]: classes 40 do not exist"),
            ({"hierarchy.levels": [1, [list(range(40)), []]]}, "hierarchy.levels[1]: teacher 1 has an empty block"),
            ({"hierarchy.class_order": [0, 1]}, "hierarchy.class_order: must list each class 0..39 once"),
            ({"hierarchy.class_order": [0, *range(39)]}, "hierarchy.class_order: must list each class 0..39 once"),
            (
                {"rounds.filters": [{"kind": "topk_rate", "k": 41}]},
                "rounds.filters[0].k: cannot be more than the 40 classes",
            ),
            (
                {"data.rotations": 1, "hierarchy.levels": [1, 11]},
                "hierarchy.levels[1]: cannot be more than the 10 classes",
            ),
            ({"data.splits.test": 0.5}, "data.splits: shares must sum to 1 (got 1.3)"),
            ({"data.splits.test": 0.0, "data.splits.student": 0.65}, "data.splits.test: must be above 0 here"),
            ({"data.components": 3000}, "data.components: must not exceed data.fourier_features = 2048 (got 3000)"),
            (
                {"data.rotations": 1, "data.components": 1000},
                "data.components: must not exceed the 809 student samples",
            ),
        ],
    )
    def test_one_problem(self, changes: dict[str, Any], expected: str) -> None:
        problems = check(make_config(merged({}, changes))).problems
        assert len(problems) == 1, problems
        assert problems[0].startswith(expected), problems

    def test_no_samples_for_teachers(self) -> None:
        problems = check(make_config({"data": {"splits": {"teacher": 0.0, "test": 0.45}}})).problems
        assert problems[0].startswith("data.splits.teacher: must be above 0 here (got 0)")

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"hierarchy.levels": [40]} | {"rounds.assignment": "mean"},
            {"hierarchy.levels": [2, 4], "rounds.assignment": "vote"},
            {"hierarchy.levels": [2, 4], "rounds.assignment": "oracle"},
            {"hierarchy.levels": [1, 40, [list(range(20)), list(range(20, 40))]]},
            {"hierarchy.class_order": list(reversed(range(40)))},
            {"rounds.filters": [{"kind": "topk_rate", "k": 40}]},
            {"student.loss": "auxiliary_confidence", "student.auxiliary_confidence.alpha": 0.2},
            {"device": "cuda", "compute.backend": "inline"},
            {"baselines": []},
        ],
    )
    def test_valid(self, changes: dict[str, Any]) -> None:
        checked = check(make_config(merged({}, changes)))
        assert checked.problems == ()
        assert all(sorted(c for b in level.blocks for c in b) == list(range(40)) for level in checked.levels)

    def test_given_teachers_must_fit_the_levels(self, tmp_path: Path) -> None:
        data = write_folder(tmp_path / "data", small_arrays())
        good = check(make_config(small_tree(tmp_path, data)))
        assert good.problems == ()
        assert good.info.given_teachers == {0: 1, 1: 2, 2: 3}
        (problem,) = check(make_config(small_tree(tmp_path, data, hierarchy__levels=[1, 3, 3]))).problems
        assert problem == "hierarchy.levels[1]: the data holds 2 teachers for this level (got 3)"
        (problem,) = check(make_config(small_tree(tmp_path, data, hierarchy__levels=[1, 2, 7]))).problems[:1]
        assert "cannot be more than the 6 classes" in problem

    def test_levels_beyond_the_given_ones_need_teacher_samples(self, tmp_path: Path) -> None:
        arrays = small_arrays()
        arrays["split"] = arrays["split"] % 3
        data = write_folder(tmp_path / "data", arrays)
        (problem,) = check(make_config(small_tree(tmp_path, data, hierarchy__levels=[1, 2, 3, 6]))).problems
        assert problem.startswith("hierarchy.levels[3]: no array teacher_3_* in the data and no samples")

    def test_unreadable_data_is_reported_with_other_contradictions(self, tmp_path: Path) -> None:
        tree = small_tree(tmp_path, tmp_path / "nowhere", baselines=["mean", "mean"])
        problems = check(make_config(tree)).problems
        assert [p.split(":")[0] for p in problems] == ["data.path", "baselines"]


class TestYaml:
    @pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", ".1e-2", "0.001", "1e-03", "10e-4"])
    def test_numbers_in_powers_of_ten(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(f"student: {{lr: {text}}}\n")
        assert load_config(path).student.lr == pytest.approx(1e-3)
        assert load_config(None, [f"student.lr={text}"]).student.lr == pytest.approx(1e-3)

    def test_powers_of_ten_do_not_swallow_names(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("a: e5\nb: '1e5'\nc: 1e5x\nd: 12\n")
        assert read_yaml(path) == {"a": "e5", "b": "1e5", "c": "1e5x", "d": 12}

    @pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "student: {lr: 1.0, lr: 2.0}\n", "a:\n  - {x: 1, x: 1}\n"])
    def test_repeated_key(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"key '\w+' is given twice"):
            load_config(path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- 1\n- 2\n", "top level: must be a mapping of settings (got list)"),
            ("just words", "top level: must be a mapping of settings (got str)"),
            ("a: [1, 2", "YAML:"),
            ("a: b: c", "YAML:"),
            ("!!python/object/apply:os.system ['true']", "YAML:"),
            ("\tseed: 1", "YAML:"),
        ],
    )
    def test_not_a_configuration(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("what", ["missing", "folder", "binary"])
    def test_unreadable_file(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "c.yaml"
        if what == "folder":
            path.mkdir()
        elif what == "binary":
            path.write_bytes(b"\xff\xfe\x00seed")
        with pytest.raises(ConfigError, match="config file: must be readable"):
            load_config(path)

    @pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
    def test_empty_file_is_the_default(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        assert load_config(path) == ExperimentConfig()

    def test_anchors_and_merge_keys_are_values_or_mistakes_never_silent(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("seed: &s 3\nstudent: {epochs: *s}\n")
        config = load_config(path)
        assert (config.seed, config.student.epochs) == (3, 3)

    def test_a_section_without_content_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("student:\n")
        with pytest.raises(ConfigError, match="student: "):
            load_config(path)

    def test_dates_and_other_yaml_types_are_mistakes_not_tracebacks(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("seed: 2024-01-01\nname: !!set {a, b}\n")
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert sorted(p.split(":")[0] for p in caught.value.problems) == ["name", "seed"]


class TestSet:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a.b=3", {"a": {"b": 3}}),
            ("a=text", {"a": "text"}),
            ("a= 3", {"a": 3}),
            ("a=[1, 2]", {"a": [1, 2]}),
            ("a.b.c=1e-3", {"a": {"b": {"c": 0.001}}}),
            ("a=x=y", {"a": "x=y"}),
            ("a=null", {"a": None}),
            ("a=[{kind: threshold, probability: 0.2}]", {"a": [{"kind": "threshold", "probability": 0.2}]}),
        ],
    )
    def test_values_are_yaml(self, text: str, value: dict[str, Any]) -> None:
        raw: dict[str, Any] = {}
        assert apply_overrides(raw, [text]) == []
        assert raw == value

    @pytest.mark.parametrize("text", ["seed", "=3", ".a=3", "a.=3", "a..b=3", ""])
    def test_syntax(self, text: str) -> None:
        (problem,) = apply_overrides({}, [text])
        assert problem == f"--set: must look like section.field=value (got {text!r})"

    def test_value_that_is_not_yaml(self) -> None:
        (problem,) = apply_overrides({}, ["a.b=[1, 2"])
        assert problem == "--set a.b: value must be YAML (got '[1, 2')"

    def test_a_value_is_not_a_section(self) -> None:
        (problem,) = apply_overrides({"seed": 3}, ["seed.x=1"])
        assert problem == "--set seed.x: 'seed' is not a section"

    def test_later_wins_over_earlier_and_over_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("seed: 1\nstudent: {epochs: 7, lr: 0.5}\n")
        config = load_config(path, ["seed=2", "seed=3", "student.epochs=9"])
        assert (config.seed, config.student.epochs, config.student.lr) == (3, 9, 0.5)
        assert load_config(path, ["seed=2"], seed=5).seed == 5


def test_the_default_is_valid_and_resolved() -> None:
    config = load_config()
    assert config == ExperimentConfig()
    assert check(config).problems == ()


def test_configs_are_frozen_and_refuse_what_they_do_not_know() -> None:
    config = ExperimentConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.student.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        ExperimentConfig(sed=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hierarchy.levels": [1, 2, [[0, 1, 2], list(range(3, 40))]], "hierarchy.class_order": list(range(40))},
        {
            "rounds.filters": [
                {"kind": "threshold", "probability": 0.25, "of": "teacher"},
                {"kind": "local_global", "k": 2},
            ]
        },
        {"data": {"name": "arrays", "path": "a/b.npz", "n_classes": 7, "splits": {"test": 0.3, "teacher": 0.15}}},
        {"student.lr": 1e-05, "teachers.lr": 1e22, "seed": 2**63 - 1, "name": "1e-3"},
        {"compute.ray_address": "auto", "tracking.uri": "sqlite:///x.db", "baselines": []},
        {"storage": "a: b # c", "tracking.experiment": "yes"},
    ],
)
def test_yaml_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = make_config(merged({}, changes))
    path = tmp_path / "c.yaml"
    path.write_text(dump_yaml(config))
    again, problems, _ = parse(read_yaml(path))
    assert problems == []
    assert again == config
    assert list(yaml.safe_load(dump_yaml(config))) == list(ExperimentConfig.model_fields)


def test_parse_leaves_its_input_alone() -> None:
    tree = {"seed": -1, "student": {"lr": 0, "epochs": 3}, "data": {}}
    config, _, bad = parse(tree)
    assert tree == {"seed": -1, "student": {"lr": 0, "epochs": 3}, "data": {}}
    assert bad == {"seed", "student.lr"}
    assert config.student.epochs == 3, "what is right stays, so that the rest can be checked"
