"""The journal: append-only, each record once, whole lines only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Journal, read_journal


def _records(path: Path) -> list[dict[str, Any]]:
    return [record for record, _ in read_journal(path)]


def test_records_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    journal = Journal(path)
    journal.write("metric", "pgr", value=0.5, step=3)
    (record,) = _records(path)
    assert record["id"] == "metric/pgr/3"
    assert (record["kind"], record["name"], record["value"], record["step"]) == ("metric", "pgr", 0.5, 3)
    assert record["time"] > 1e12, "milliseconds"
    journal.close()


def test_each_record_once_also_across_processes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("metric", "pgr", value=0.5, step=1)
    journal.write("metric", "pgr", value=0.7, step=1)
    journal.write("metric", "pgr", value=0.7, step=2)
    journal.write("param", "pgr", value="x")
    journal.close()
    first = _records(path)
    again = Journal(path)
    again.write("metric", "pgr", value=0.9, step=2)
    again.write("metric", "pgr", value=0.9, step=3)
    again.close()
    records = _records(path)
    assert records[:3] == first, "an existing record keeps its value and its time"
    assert [r["id"] for r in records] == ["metric/pgr/1", "metric/pgr/2", "param/pgr", "metric/pgr/3"]


def test_undefined_values_are_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.write("metric", "pgr", value=None, step=1)
    journal.write("metric", "zero", value=0.0, step=0)
    journal.write("model", "student")
    journal.close()
    assert [r["id"] for r in _records(tmp_path / "j")] == ["metric/zero/0", "model/student"]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_line_is_cut_off_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.write("metric", "a", value=1.0, step=1)
    journal.write("metric", "b", value=2.0, step=1)
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["name"] for r in _records(path)] == ["a"]
    again = Journal(path)
    again.write("metric", "b", value=3.0, step=1)
    again.close()
    assert [(r["name"], r["value"]) for r in _records(path)] == [("a", 1.0), ("b", 3.0)]


def test_a_file_of_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"id": "metr')
    journal = Journal(path)
    journal.write("metric", "a", value=1.0)
    journal.close()
    assert [r["name"] for r in _records(path)] == ["a"]


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    for step in range(3):
        journal.write("metric", "größe", value=float(step), step=step)
    pairs = list(read_journal(path))
    assert pairs[-1][1] == path.stat().st_size
    assert [r["step"] for r, _ in read_journal(path, pairs[0][1])] == [1, 2]
    assert list(read_journal(path, pairs[-1][1])) == []
    journal.write("metric", "later", value=1.0)
    assert [r["name"] for r, _ in read_journal(path, pairs[-1][1])] == ["later"]
    journal.close()


def test_nothing_there(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "none")) == []


def test_one_line_a_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.write("param", "text", value="two\nlines")
    journal.close()
    (line,) = (tmp_path / "j").read_text().splitlines()
    assert json.loads(line)["value"] == "two\nlines"
