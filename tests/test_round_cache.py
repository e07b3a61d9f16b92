"""Rounds on disk: read back as written, computed once."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.errors import StorageError
from orchestrator.method.records import RoundOutput
from orchestrator.round_cache import RoundCache, read_round, to_output

KEY = "0123abcd"


def _output(value: float = 0.5) -> RoundOutput:
    n, c = 7, 3
    return RoundOutput(
        head={"weight": torch.full((c, 4), value), "bias": torch.arange(3.0)},
        assigned=torch.tensor([0, 1, -1, 0, 1, 0, 1], dtype=torch.int32),
        top_classes=torch.arange(n * 2, dtype=torch.int32).reshape(n, 2) % c,
        teacher_confidence=torch.linspace(0, 1, n),
        keep=torch.arange(n) % 2 == 0,
        train_classes=torch.zeros(n, dtype=torch.int32),
        validation_classes=torch.empty(0, dtype=torch.int32),
        test_classes=torch.tensor([2, 1], dtype=torch.int32),
        test_curve=torch.tensor([[0, 1], [2, 1]], dtype=torch.int32),
        curve_epochs=(1, 2),
        losses=(1.5, 0.1 + 0.2),
        consensus=(0.25, 1 / 3, 1.0),
        asked=7,
        forward_passes=5,
        seconds={"training": 0.125, "teachers": 0.5},
        trained_samples=14,
    )


def _assert_same(a: RoundOutput, b: RoundOutput) -> None:
    for f in fields(RoundOutput):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype, f.name
            assert torch.equal(one, other), f.name
        elif f.name == "head":
            assert set(one) == set(other)
            assert all(torch.equal(one[name], other[name]) for name in one)
        else:
            assert one == other, f.name


def test_round_trip_of_every_field(tmp_path: Path) -> None:
    cache = RoundCache(tmp_path)
    path = cache.put(KEY, _output())
    stored = cache.get(KEY)
    assert stored is not None
    assert (stored.key, stored.path) == (KEY, path) == (KEY, cache.path(KEY))
    _assert_same(_output(), to_output(stored))


def test_a_first_round_has_no_consensus_and_maybe_no_curve(tmp_path: Path) -> None:
    from dataclasses import replace

    output = replace(_output(), consensus=(), curve_epochs=(), test_curve=torch.empty(0, 2, dtype=torch.int32))
    RoundCache(tmp_path).put(KEY, output)
    _assert_same(output, to_output(read_round(tmp_path / KEY)))


def test_missing(tmp_path: Path) -> None:
    cache = RoundCache(tmp_path / "none")
    assert cache.get(KEY) is None
    assert not cache.has(KEY)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("file", ["round.safetensors", "round.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    cache = RoundCache(tmp_path)
    path = cache.put(KEY, _output()) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-20])
    with pytest.raises(StorageError, match=KEY):
        cache.get(KEY)
    with pytest.raises(StorageError, match=KEY):
        cache.claim(KEY)


class TestClaim:
    def test_the_first_computes_and_the_second_waits(self, tmp_path: Path) -> None:
        first, second = RoundCache(tmp_path), RoundCache(tmp_path)
        assert first.claim(KEY) is None
        found: list[object] = []
        waiter = threading.Thread(target=lambda: found.append(second.claim(KEY)))
        waiter.start()
        time.sleep(0.2)
        assert found == [], "the second must wait while the first computes"
        first.put(KEY, _output(0.75))
        waiter.join(10)
        assert len(found) == 1
        assert float(found[0].head["weight"][0, 0]) == 0.75  # type: ignore[attr-defined]

    def test_who_gives_up_hands_the_claim_on(self, tmp_path: Path) -> None:
        first, second = RoundCache(tmp_path), RoundCache(tmp_path)
        assert first.claim(KEY) is None
        found: list[object] = []
        waiter = threading.Thread(target=lambda: found.append(second.claim(KEY)))
        waiter.start()
        time.sleep(0.1)
        first.release(KEY)
        waiter.join(10)
        assert found == [None], "it is the second's to compute now"
        second.put(KEY, _output())
        assert first.claim(KEY) is not None

    def test_finished_rounds_need_no_lock(self, tmp_path: Path) -> None:
        RoundCache(tmp_path).put(KEY, _output())
        caches = [RoundCache(tmp_path) for _ in range(3)]
        assert all(cache.claim(KEY) is not None for cache in caches)

    def test_other_keys_do_not_wait(self, tmp_path: Path) -> None:
        first, second = RoundCache(tmp_path), RoundCache(tmp_path)
        assert first.claim("a") is None
        assert second.claim("b") is None

    def test_release_of_what_was_never_claimed(self, tmp_path: Path) -> None:
        RoundCache(tmp_path).release(KEY)


def test_install_takes_a_round_over_under_its_own_key(tmp_path: Path) -> None:
    source = RoundCache(tmp_path / "a").put(KEY, _output())
    elsewhere = source.rename(tmp_path / "checkpoint_000001")
    cache = RoundCache(tmp_path / "b")
    cache.install(elsewhere)
    cache.install(elsewhere)
    stored = cache.get(KEY)
    assert stored is not None
    _assert_same(_output(), to_output(stored))
    with pytest.raises(StorageError, match="not a readable round"):
        cache.install(tmp_path / "a")


def test_prune_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = RoundCache(tmp_path)
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "round.json").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert [e.path.name for e in cache.entries()] == ["new", "middle", "old"]
    assert [e.path.name for e in cache.prune(max_bytes=250)] == ["old"]
    assert [e.path.name for e in cache.prune(unused_since=1000)] == ["middle"]
    assert cache.has("new")
    assert not cache.has("middle")
