from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from surgery.data import Dataset
from surgery.errors import SurgeryError


def numbered(count: int, classes: int = 2) -> Dataset:
    return Dataset(np.arange(count, dtype=np.float32)[:, None], np.arange(count) % classes)


def test_a_split_takes_its_share_of_each_class_and_loses_nothing() -> None:
    data = Dataset(np.arange(100)[:, None], np.repeat([0, 1, 2], [60, 30, 10]))
    rest, held = data.split(0.2, seed=3)
    assert np.bincount(held.targets).tolist() == [12, 6, 2]
    assert sorted([*rest.examples.ravel(), *held.examples.ravel()]) == list(range(100))


def test_a_split_is_drawn_by_its_seed() -> None:
    data = numbered(50)
    first, again, other = (data.split(0.3, seed)[1].examples.ravel().tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_float_targets_are_split_without_classes() -> None:
    data = Dataset(np.arange(10)[:, None], np.linspace(0, 1, 10, dtype=np.float32))
    rest, held = data.split(0.5, seed=0)
    assert len(rest) == len(held) == 5


def test_batches_serve_every_example_once_with_its_target() -> None:
    data = numbered(10)
    seen = [(x, t) for xs, ts in data.batches(4, np.random.default_rng(0)) for x, t in zip(xs.ravel(), ts, strict=True)]
    assert sorted(x for x, _ in seen) == list(range(10))
    assert all(t == x % 2 for x, t in seen)
    assert [len(xs) for xs, _ in data.batches(4)] == [4, 4, 2]


def test_the_order_changes_from_epoch_to_epoch_and_repeats_with_the_seed() -> None:
    data, generator = numbered(20), np.random.default_rng(5)
    epochs = [[int(x) for xs, _ in data.batches(7, generator) for x in xs.ravel()] for _ in range(2)]
    assert epochs[0] != epochs[1]
    again = [int(x) for xs, _ in data.batches(7, np.random.default_rng(5)) for x in xs.ravel()]
    assert again == epochs[0]


def test_an_error_while_a_batch_is_prepared_reaches_the_reader() -> None:
    def fail(_: np.ndarray) -> np.ndarray:
        raise SurgeryError("broken example")

    data = Dataset(np.zeros((4, 1)), np.zeros(4, np.int64), fail)
    with pytest.raises(SurgeryError, match="broken example"):
        list(data.batches(2))


def test_leaving_in_the_middle_ends_the_preparing_thread() -> None:
    before = threading.active_count()
    batches = numbered(1000).batches(1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before


def test_examples_and_targets_must_be_as_many() -> None:
    with pytest.raises(SurgeryError, match="3 examples but 2 targets"):
        Dataset(np.zeros((3, 1)), np.zeros(2))


def test_examples_that_are_not_numbers_are_named() -> None:
    examples = np.zeros((20, 2, 2))
    Dataset(examples, np.zeros(20)).check_finite()
    examples[3, 0, 1], examples[7, 1, 1] = np.nan, 1e300  # which float32 does not hold
    with pytest.raises(SurgeryError, match=r"examples 3, 7 .*are not finite numbers"):
        Dataset(examples, np.zeros(20)).check_finite()
    with pytest.raises(SurgeryError, match=r"examples 3, 7 .*of input 'a' are not finite"):
        Dataset({"b": np.zeros((20, 1), np.uint8), "a": examples}, np.zeros(20)).check_finite()
