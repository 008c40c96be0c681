from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from surgery.data import Dataset, from_arrays
from surgery.data.rows import Selected
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing
from tests.data.models import model_with_input


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
    seen = [(x, t) for xs, ts in data.batches(4, seed=0) for x, t in zip(xs.ravel(), ts, strict=True)]
    assert sorted(x for x, _ in seen) == list(range(10))
    assert all(t == x % 2 for x, t in seen)
    assert [len(xs) for xs, _ in data.batches(4)] == [4, 4, 2]


def test_the_order_changes_from_epoch_to_epoch_and_repeats_with_the_seed() -> None:
    data = numbered(20)
    epochs = [[int(x) for xs, _ in data.batches(7, seed=5, epoch=epoch) for x in xs.ravel()] for epoch in (1, 2, 1)]
    assert epochs[0] != epochs[1]
    assert epochs[2] == epochs[0]


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


def served(data: Dataset, **how: int) -> list[list[int]]:
    return [xs.ravel().astype(int).tolist() for xs, _ in data.batches(7, **how)]


def test_an_epoch_is_drawn_by_seed_and_number_and_may_start_in_the_middle() -> None:
    data = numbered(40)
    whole = served(data, seed=5, epoch=3)
    assert sorted(i for part in whole for i in part) == list(range(40))
    assert served(data, seed=5, epoch=3, first=2) == whole[2:]
    assert served(data, seed=5, epoch=4) != whole != served(data, seed=6, epoch=3)
    assert [part.tolist() for part in data.order(7, seed=5, epoch=3)] == whole
    assert served(data, first=5) == [[35, 36, 37, 38, 39]]
    assert served(data, first=6) == []


def test_a_fingerprint_goes_by_the_examples_and_their_preparation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    model = model_with_input("N", 3, 8, 8)
    data = from_arrays(pixels, np.arange(6), model)
    print_ = data.fingerprint()
    assert print_ is not None
    assert print_ == from_arrays(pixels.copy(), np.arange(6)[::-1], model).fingerprint()
    other = pixels.copy()
    other[5, 7, 7, 2] ^= 1
    scaled = model_with_input("N", 3, 8, 8, how=Preprocessing(scale=1 / 128))
    different = {
        from_arrays(other, np.arange(6), model).fingerprint(),
        from_arrays(pixels, np.arange(6), scaled).fingerprint(),
        data.subset(np.arange(5)).fingerprint(),
        data.subset(np.arange(6)[::-1]).fingerprint(),
    }
    assert len(different | {print_}) == 5
    assert Dataset(pixels, np.arange(6), lambda batch: batch).fingerprint() is None


def test_parts_of_a_memory_mapped_file_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float32)[:, None])
    data = Dataset(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(40) % 2)
    part = data.subset(np.arange(10, 30)).subset(np.array([3, 1, 4]))
    assert isinstance(part.examples, Selected)
    assert isinstance(part.examples.rows, np.memmap)
    assert served(part) == [[13, 11, 14]]
    assert part.fingerprint() != data.subset(np.array([13, 11, 15])).fingerprint()


def test_lazy_rows_are_indexed_like_arrays() -> None:
    array = np.arange(24).reshape(6, 2, 2)
    rows = Selected(array, np.array([5, 0, 3]))
    same = array[[5, 0, 3]]
    assert rows.shape == (3, 2, 2)
    for index in (1, -1, slice(1, None), [2, 0], (1, 0), (1, 0, 1), (slice(None), 1), np.array([True, False, True])):
        np.testing.assert_array_equal(rows[index], same[index])
    np.testing.assert_array_equal(np.asarray(rows), same)
    with pytest.raises(IndexError):
        rows[3]
