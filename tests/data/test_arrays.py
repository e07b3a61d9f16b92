"""Arrays on disk: what is read, and every mistake that is reported before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.arrays import ArraysData, ArraysOptions
from orchestrator.data.dataset import DataInfo, Dataset
from orchestrator.data.store import Store
from orchestrator.errors import ConfigError
from tests.helpers import Arrays, small_arrays, write_folder

ROWS, C = 200, 6


def _save(tmp_path: Path, arrays: Arrays, form: str) -> Path:
    if form == "folder":
        return write_folder(tmp_path / "data", arrays)
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _options(path: Path, **changes: Any) -> ArraysOptions:
    return ArraysOptions(path=str(path), **changes)


def _describe(path: Path, **changes: Any) -> DataInfo:
    return ArraysData.describe(_options(path, **changes), 0)


def _load(path: Path, tmp_path: Path, seed: int = 0, **changes: Any) -> Dataset:
    return ArraysData.load(_options(path, **changes), seed, Store(tmp_path / "store"))


@pytest.mark.parametrize("form", ["npz", "folder"])
class TestReading:
    def test_describe(self, tmp_path: Path, form: str) -> None:
        info = _describe(_save(tmp_path, small_arrays(), form))
        assert info.problems == ()
        assert (info.n_classes, info.n_features) == (C, 8)
        assert info.counts == {"student": 120, "validation": 20, "test": 40, "teacher": 20}
        assert info.given_teachers == {0: 1, 1: 2, 2: 3}

    def test_load(self, tmp_path: Path, form: str) -> None:
        arrays = small_arrays()
        dataset = _load(_save(tmp_path, arrays, form), tmp_path, standardize=False)
        assert np.array_equal(dataset.features, arrays["features"])
        assert dataset.features.dtype == np.float32
        assert np.array_equal(dataset.labels, arrays["labels"])
        assert dataset.labels.dtype == np.int64
        for name, code in {"student": 0, "validation": 1, "test": 2, "teacher": 3}.items():
            assert np.array_equal(getattr(dataset.splits, name), np.flatnonzero(arrays["split"] == code))
        assert set(dataset.given_teachers) == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
        for (level, k), teacher in dataset.given_teachers.items():
            assert np.array_equal(teacher.open(), arrays[f"teacher_{level}_{k}"])

    def test_teachers_of_a_folder_stay_on_disk(self, tmp_path: Path, form: str) -> None:
        dataset = _load(_save(tmp_path, small_arrays(), form), tmp_path)
        assert isinstance(dataset.given_teachers[1, 1].open(), np.memmap) == (form == "folder")

    def test_standardised_over_the_students_samples_only(self, tmp_path: Path, form: str) -> None:
        arrays = small_arrays()
        arrays["features"][:, 3] = 5.0
        arrays["features"][arrays["split"] == 2] *= 100
        dataset = _load(_save(tmp_path, arrays, form), tmp_path)
        seen = dataset.features[dataset.splits.student]
        np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.delete(seen.std(axis=0), 3), 1, atol=1e-5)
        np.testing.assert_allclose(seen[:, 3], 0, atol=1e-5)
        assert np.isfinite(dataset.features).all()

    def test_same_content_same_digest(self, tmp_path: Path, form: str) -> None:
        arrays = small_arrays()
        first = _load(_save(tmp_path / "a", arrays, "folder"), tmp_path)
        again = _load(_save(tmp_path, arrays, form), tmp_path)
        assert first.digest == again.digest
        assert first.given_teachers[1, 0].digest == again.given_teachers[1, 0].digest

    def test_seeded_split(self, tmp_path: Path, form: str) -> None:
        arrays = small_arrays()
        del arrays["split"]
        path = _save(tmp_path, arrays, form)
        dataset, again, other = _load(path, tmp_path), _load(path, tmp_path), _load(path, tmp_path, seed=1)
        parts = [dataset.splits.teacher, dataset.splits.student, dataset.splits.validation, dataset.splits.test]
        assert [len(p) for p in parts] == [50, 90, 20, 40]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(ROWS))
        assert np.array_equal(dataset.splits.student, again.splits.student)
        assert not np.array_equal(dataset.splits.student, other.splits.student)
        assert _describe(path).counts == dataset.splits.counts()

    def test_integer_and_half_types(self, tmp_path: Path, form: str) -> None:
        arrays = small_arrays()
        arrays |= {"features": arrays["features"].astype(np.float16), "labels": arrays["labels"].astype(np.uint8)}
        arrays |= {"split": arrays["split"].astype(np.int8), "ids": np.arange(ROWS).astype("U8")}
        path = _save(tmp_path, arrays, form)
        assert _describe(path).problems == ()
        dataset = _load(path, tmp_path)
        assert dataset.features.dtype == np.float32
        assert dataset.labels.dtype == np.int64


def test_digest_covers_features_and_split_but_not_the_truth(tmp_path: Path) -> None:
    arrays = small_arrays()

    def digest(**changes: Any) -> str:
        return _load(write_folder(tmp_path / "data", {**arrays, **changes}), tmp_path).digest

    plain = digest()
    assert digest(labels=arrays["labels"][::-1].copy()) == plain
    assert digest(split=(arrays["split"] + 1) % 4) != plain
    assert digest(features=arrays["features"] + 1) != plain


def test_classes_come_from_options_else_teachers_else_labels(tmp_path: Path) -> None:
    arrays = small_arrays()
    plain = {k: v for k, v in arrays.items() if not k.startswith("teacher_")}
    plain["labels"] = np.minimum(plain["labels"], 3)
    assert _describe(write_folder(tmp_path / "a", plain)).n_classes == 4
    assert _describe(write_folder(tmp_path / "a", plain), n_classes=9).n_classes == 9
    assert _describe(write_folder(tmp_path / "b", {**arrays, "labels": plain["labels"]})).n_classes == C


def _set(name: str, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def _put(name: str, at: Any, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][at] = value

    return change


def _rename(name: str, other: str | None) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        array = arrays.pop(name)
        if other is not None:
            arrays[other] = array

    return change


MISTAKES: list[tuple[Callable[[Arrays], None], str]] = [
    (_rename("features", None), "data.features: array is missing in"),
    (_rename("labels", "label"), "data.labels: array is missing in"),
    (_set("features", lambda a: a.astype(np.int32)), "data.features: must be float [N, D] (got int32 [200, 8])"),
    (_set("features", lambda a: a[:, 0]), "data.features: must be float [N, D] (got float32 [200])"),
    (_set("labels", lambda a: a.astype(float)), "data.labels: must be integer [N] (got float64 [200])"),
    (_set("labels", lambda a: a[:, None]), "data.labels: must be integer [N] (got int64 [200, 1])"),
    (_set("labels", lambda a: a[:-1]), "data.labels: must have as many rows as features, 200 (got 199)"),
    (_set("split", lambda a: a[:-1]), "data.split: must have as many rows as features, 200 (got 199)"),
    (_set("split", lambda a: a.astype(float)), "data.split: must be integer (got float64)"),
    (_set("split", lambda a: a[:, None]), "data.split: must be one value per sample, [N] (got [200, 1])"),
    (_set("teacher_1_1", lambda a: a[1:]), "data.teacher_1_1: must have as many rows as features, 200 (got 199)"),
    (_set("teacher_1_1", lambda a: a[:, 0]), "data.teacher_1_1: must be float [N, C] (got float16 [200])"),
    (_set("teacher_1_1", lambda a: (a > 0.5).astype(np.int8)), "data.teacher_1_1: must be float [N, C] (got int8"),
    (_set("teacher_1_1", lambda a: a[:, :-1]), "data.teacher_*: must all have the same number of classes (got [5, 6])"),
    (_rename("teacher_2_1", None), "data.teacher_2_*: must be numbered from 0 without gaps (got [0, 2])"),
    (_rename("teacher_0_0", "teacher_0_1"), "data.teacher_0_*: must be numbered from 0 without gaps (got [1])"),
    (_put("features", (7, 2), np.nan), "data.features: must be finite (got NaN or infinity in 1 rows)"),
    (_put("features", [3, 4, 199], -np.inf), "data.features: must be finite (got NaN or infinity in 3 rows)"),
    (
        _put("teacher_1_0", (199, 5), np.nan),
        "data.teacher_1_0: must be finite and not negative (got NaN, infinity or below 0 in 1 rows)",
    ),
    (
        _put("teacher_1_0", (0, 0), np.inf),
        "data.teacher_1_0: must be finite and not negative (got NaN, infinity or below 0 in 1 rows)",
    ),
    (_put("labels", 5, 6), "data.labels: must lie in 0..5 (got 0..6)"),
    (_put("labels", 5, -1), "data.labels: must lie in 0..5 (got -1..5)"),
    (_put("split", 5, 4), "data.split: codes are {'student': 0, 'validation': 1, 'test': 2, 'teacher': 3} (got [4])"),
    (_put("split", 5, -1), "data.split: codes are"),
    (_set("split", 300 * np.ones(ROWS, np.int64)), "data.split: codes are"),
    (_set("ids", np.r_[0, np.arange(ROWS - 1)]), "data.ids: must be unique (got 1 repeated)"),
    (_set("ids", np.arange(ROWS)[:, None]), "data.ids: must be one value per sample"),
    (_set("teacher_0_0", lambda a: a * 2), "data.teacher_0_0: rows must be probabilities that sum to 1 (got sums"),
    (_set("teacher_0_0", lambda a: np.log(a)), "data.teacher_0_0: must be finite and not negative"),
    (_put("teacher_0_0", (7, 1), -5), "data.teacher_0_0: must be finite and not negative"),
    (_put("split", slice(None), 0), "data.split: needs at least one test sample (got 0)"),
    (_set("split", lambda a: np.maximum(a, 1)), "data.split: needs at least one student sample (got 0)"),
]


@pytest.mark.parametrize("form", ["npz", "folder"])
@pytest.mark.parametrize(("change", "expected"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(tmp_path: Path, change: Callable[[Arrays], None], expected: str, form: str) -> None:
    arrays = small_arrays()
    change(arrays)
    problems = _describe(_save(tmp_path, arrays, form)).problems
    assert len(problems) == 1, problems
    assert problems[0].startswith(expected), problems


def test_several_mistakes_at_once(tmp_path: Path) -> None:
    arrays = small_arrays()
    arrays["features"][0] = np.nan
    arrays["labels"][0] = 99
    arrays["split"][0] = 9
    arrays["teacher_0_0"][0] = np.nan
    problems = _describe(_save(tmp_path, arrays, "npz")).problems
    assert [p.split(":")[0] for p in problems] == ["data.features", "data.labels", "data.split", "data.teacher_0_0"]


def test_one_bad_row_among_many_is_found(tmp_path: Path) -> None:
    """Checked in pieces; each piece must be looked at, and sums in the last rows too."""
    rows = 9000
    probabilities = np.full((rows, 2), 0.5, np.float16)
    arrays: Arrays = {
        "features": np.zeros((rows, 1), np.float32),
        "labels": np.zeros(rows, np.int64),
        "teacher_0_0": probabilities,
    }
    assert _describe(write_folder(tmp_path / "data", arrays)).problems == ()
    probabilities[-1, 0] = np.nan
    (problem,) = _describe(write_folder(tmp_path / "data", arrays)).problems
    assert problem.startswith("data.teacher_0_0: must be finite")


def test_columns_must_fit_the_given_number_of_classes(tmp_path: Path) -> None:
    problems = _describe(_save(tmp_path, small_arrays(), "npz"), n_classes=7).problems
    assert len(problems) == 6
    assert problems[0] == "data.teacher_0_0: must have data.n_classes = 7 columns (got 6)"


def test_shares_of_a_seeded_split(tmp_path: Path) -> None:
    arrays = small_arrays()
    path = _save(tmp_path, arrays, "npz")
    wrong = {"teacher": 0.2, "student": 0.6, "validation": 0.1, "test": 0.3}
    assert _describe(path, splits=wrong).problems == (), "not used: there is a split array"
    del arrays["split"]
    (problem,) = _describe(_save(tmp_path, arrays, "npz"), splits=wrong).problems
    assert problem == "data.splits: shares must sum to 1 (got 1.2)"


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        (problem,) = _describe(tmp_path / "nothing.npz").problems
        assert problem == f"data.path: no such file or folder (got '{tmp_path / 'nothing.npz'}')"

    def test_empty_folder(self, tmp_path: Path) -> None:
        problems = _describe(tmp_path).problems
        assert [p.split(":")[0] for p in problems] == ["data.features", "data.labels"]

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
    def test_damaged_npz(self, tmp_path: Path, damage: str) -> None:
        path = _save(tmp_path, small_arrays(), "npz")
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(
            {
                "cut": content[:middle],
                "empty": b"",
                "text": b"not an archive",
                "flipped": content[:middle] + bytes(64) + content[middle + 64 :],
            }[damage]
        )
        (problem,) = _describe(path).problems
        assert problem.startswith("data.path: must be a readable .npz or a folder of .npy (data.npz: ")
        with pytest.raises(ConfigError, match=r"data\.npz"):
            _load(path, tmp_path)

    @pytest.mark.parametrize("damage", ["cut", "empty", "text"])
    def test_damaged_npy(self, tmp_path: Path, damage: str) -> None:
        folder = write_folder(tmp_path / "data", small_arrays())
        file = folder / "teacher_1_0.npy"
        content = file.read_bytes()
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not an array"}[damage])
        (problem,) = _describe(folder).problems
        assert problem.startswith("data.path: teacher_1_0.npy must be a readable .npy array (")

    @pytest.mark.parametrize("form", ["npz", "folder"])
    def test_pickled_objects_are_never_read(self, tmp_path: Path, form: str) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "executed",))

        arrays = small_arrays()
        arrays["ids"] = np.array([Trap()] * ROWS, dtype=object)
        (problem,) = _describe(_save(tmp_path, arrays, form)).problems
        assert problem.startswith("data.path: ")
        assert not (tmp_path / "executed").exists()

    def test_a_single_npy_is_not_a_data_set(self, tmp_path: Path) -> None:
        path = tmp_path / "features.npy"
        np.save(path, np.zeros((3, 2), np.float32))
        (problem,) = _describe(path).problems
        assert problem.startswith("data.path: must be a readable .npz or a folder of .npy (features.npy: ")

    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _save(tmp_path, small_arrays(), "npz")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert _describe(Path("~/data.npz")).problems == ()
