"""The content-addressed store: complete or not there."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data.store import Store, load_arrays, save_arrays
from orchestrator.errors import StorageError


def _visible(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))


def test_put_and_get(tmp_path: Path) -> None:
    store = Store(tmp_path / "not" / "there" / "yet")
    assert store.get("a") is None
    path = store.put("a", lambda folder: (folder / "x").write_text("1"))  # type: ignore[arg-type, return-value]
    assert store.get("a") == path == store.path("a")
    assert (path / "x").read_text() == "1"
    assert _visible(store.root) == ["a"]


def test_asking_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    assert store.get("a") is None
    assert not store.root.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_while_writing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("...")
        raise error("stop")

    for make in (store.put, store.get_or_put):
        with pytest.raises(error, match="stop"):
            make("a", fail)
        assert store.get("a") is None
        assert _visible(tmp_path) == []
    store.get_or_put("a", lambda folder: None)
    assert store.get("a") is not None, "the lock is free again"


def test_the_first_entry_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a", lambda folder: (folder / "x").write_text("first"))  # type: ignore[arg-type, return-value]
    store.put("a", lambda folder: (folder / "x").write_text("second"))  # type: ignore[arg-type, return-value]
    assert (store.path("a") / "x").read_text() == "first"
    assert _visible(tmp_path) == ["a"]


def _make_slowly(root: Path, log: Path, start: float) -> None:
    def write(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        (folder / "x").write_text(str(os.getpid()))

    time.sleep(max(0.0, start - time.time()))
    entry = Store(root).get_or_put("a", write)
    assert (entry / "x").read_text()


def test_made_once_by_several_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.2
    processes = [context.Process(target=_make_slowly, args=(tmp_path / "root", log, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 4
    assert len(log.read_text().splitlines()) == 1


def _die_holding_the_lock(root: Path) -> None:
    Store(root).lock("a").acquire()
    os._exit(9)


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_holding_the_lock, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    started = time.monotonic()
    Store(tmp_path).get_or_put("a", lambda folder: None)
    assert time.monotonic() - started < 5


class TestArrays:
    def test_round_trip(self, tmp_path: Path) -> None:
        arrays = {
            "half": np.arange(6, dtype=np.float16).reshape(2, 3),
            "mask": np.array([True, False]),
            "transposed": np.arange(6).reshape(2, 3).T,
            "empty": np.empty((0, 4), np.float32),
        }
        save_arrays(tmp_path / "a.safetensors", arrays)
        found = load_arrays(tmp_path / "a.safetensors")
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
            assert found[name].shape == array.shape

    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "header"])
    def test_damage_is_named(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "some.safetensors"
        save_arrays(path, {"a": np.arange(1000.0)})
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                {"empty": b"", "cut": content[:-100], "text": b"hello", "header": b"\xff" * 8 + content[8:]}[damage]
            )
        with pytest.raises(StorageError, match=r"some\.safetensors.*remove it"):
            load_arrays(path)
