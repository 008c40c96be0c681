"""Python objects as data, arrays in files, and images that do not fit the memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from surgery.data import as_dataset, from_folder, from_items, open_data, open_part
from surgery.data import npz as npz_module
from surgery.data.augment import Augment
from surgery.data.images import ImageFiles
from surgery.data.rows import LazyRows
from surgery.errors import SurgeryError
from surgery.marks import set_labels
from tests.data.models import model_with_input
from tests.graphs import parse

VECTOR = model_with_input("N", 3)
RGB = model_with_input("N", 3, 8, 8)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 3)).astype(np.float32)


def read(data: Any, **how: int) -> np.ndarray:
    return np.concatenate([x for x, _ in data.batches(4, **how)])


class Pictures(TorchDataset):
    """As torchvision's: items are Pillow images of several sizes, and class numbers."""

    classes = ["ants", "bees"]  # noqa: RUF012

    def __init__(self, augments: bool = False) -> None:
        self.reads, self.augments = 0, augments
        self.images = [RNG.integers(0, 256, (8 + i, 12, 3)).astype(np.uint8) for i in range(6)]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= 6:
            raise KeyError(index)  # which would not end an iteration
        self.reads += 1
        image = self.images[index]
        return Image.fromarray(np.roll(image, self.reads, 1) if self.augments else image), index % 2


def test_a_pytorch_data_set_is_read_once_where_it_fits() -> None:
    source = TensorDataset(torch.from_numpy(X), torch.arange(10) % 4)
    data, held = as_dataset(source, VECTOR)
    assert held is None
    np.testing.assert_array_equal(read(data), X)
    assert data.targets.tolist() == [i % 4 for i in range(10)]
    assert data.deterministic
    assert data.fingerprint() == as_dataset((X, np.arange(10)), VECTOR)[0].fingerprint()


def test_a_pytorch_data_set_that_does_not_fit_is_read_each_time() -> None:
    source = TensorDataset(torch.from_numpy(X), torch.arange(10) % 4)
    data = from_items(source, VECTOR, memory=50)
    assert isinstance(data.examples, LazyRows)
    np.testing.assert_array_equal(read(data), X)
    np.testing.assert_array_equal(read(data.subset(np.array([7, 1]))), X[[7, 1]])
    assert data.deterministic
    assert data.fingerprint() is None  # nobody knows what it gives next time
    (order,) = data.order(10, seed=1)
    ((x, t),) = data.batches(10, seed=1)
    np.testing.assert_array_equal(x, X[order])
    np.testing.assert_array_equal(t, order % 4)


@pytest.mark.parametrize("memory", [10**6, 0])
def test_pictures_of_several_sizes_are_images(memory: int) -> None:
    source = Pictures()
    data = from_items(source, RGB, memory=memory)
    want = np.stack([np.asarray(Image.fromarray(image)) for image in [source.images[0][:, 2:10]]])
    np.testing.assert_allclose(read(data)[0], want[0].transpose(2, 0, 1) / 255, atol=1e-6)
    assert data.labels == ("ants", "bees")
    assert data.examples.shape == (6, 8, 8, 3)
    before = source.reads
    read(data)
    assert (source.reads == before) == (memory > 0)
    assert (data.fingerprint() is None) == (memory == 0)
    assert read(data.augmented(Augment(resized_crop=True)), seed=0).shape == (6, 3, 8, 8)  # type: ignore[arg-type]


def test_a_data_set_that_augments_is_read_each_time() -> None:
    data = from_items(Pictures(augments=True), RGB)
    assert not data.deterministic
    assert not data.subset(np.arange(3)).deterministic
    assert not np.array_equal(read(data), read(data))


def test_a_generator_of_pairs_is_read_once() -> None:
    def pairs() -> Iterator[tuple[list[float], str]]:
        for index, row in enumerate(X):
            yield row.tolist(), "cat" if index % 3 else "ant"

    data, _ = as_dataset(pairs(), VECTOR)
    np.testing.assert_array_equal(read(data), X)
    assert data.labels == ("ant", "cat")
    assert data.targets.tolist() == [int(i % 3 > 0) for i in range(10)]


def test_several_inputs_and_outputs_come_by_name() -> None:
    model = parse(
        "(float[N,3] a, float[N,2] b) => (float[N,2] kind, float[N,1] size)",
        "c = Concat<axis = 1>(a, b) kind = Gemm<transB = 1>(c, w, d) size = Gemm<transB = 1>(c, v, e)",
        {"w": [2, 5], "d": [2], "v": [1, 5], "e": [1]},
    )
    pairs = [({"a": x, "b": [1, 2]}, {"kind": "yz"[i % 2], "size": 0.5 * i}) for i, x in enumerate(X)]
    data, _ = as_dataset(pairs, model)
    ((x, t),) = data.batches(10)
    np.testing.assert_array_equal(x["a"], X)
    assert x["b"].tolist() == [[1, 2]] * 10
    assert t["kind"].tolist() == [0, 1] * 5
    assert t["size"].tolist() == [0.5 * i for i in range(10)]
    assert data.labels_of("kind") == ("y", "z")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "a int is no data"),
        ([], "the data set is empty"),
        (iter([]), "the data set is empty"),
        ([1, 2, 3], "item 0 of the data is a int"),
        ([(X[0], 1), (X[0], 1, 2)], "item 1 of the data is a tuple of 3"),
        ([(X[0], 1), (X[0][:2], 1)], r"example 0 has shape \[3\], example 1 \[2\]"),
        ([(X[0], [1, 2]), (X[1], [1])], "targets do not all have one shape"),
        ([(X[0], None), (X[1], None)], "the targets are object"),
        (torch.utils.data.DataLoader([(X[0], 1)]), r"give its data set \(loader\.dataset\)"),
    ],
)
def test_objects_that_are_no_data(source: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        as_dataset(source, VECTOR)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_module, "_MAPPED", 200)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("kind", ["npz", "npy", "fortran"])
def test_large_arrays_are_mapped(tmp_path: Path, kind: str) -> None:
    x = np.asfortranarray(X) if kind == "fortran" else X
    path = tmp_path if kind == "npy" else tmp_path / "d.npz"
    arrays = {"x_train": x, "y_train": np.arange(10) % 3, "x_test": X[:4] + 1, "y_test": np.arange(4) % 3}
    if kind == "npy":
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    else:
        np.savez(path, labels=["a", "b", "c"], **arrays)  # type: ignore[arg-type]
    data, held = open_data(path, VECTOR)
    assert isinstance(data.examples, np.memmap)
    assert held is None
    np.testing.assert_array_equal(read(data), X)
    rest, split = data.split(0.3, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([read(rest), read(split)]), 0), np.sort(X, 0))
    assert isinstance(rest.examples, LazyRows)
    assert data.fingerprint() == as_dataset((X, np.arange(10)), VECTOR)[0].fingerprint()
    test = open_part(path, VECTOR)
    np.testing.assert_array_equal(read(test), X[:4] + 1)
    assert not isinstance(test.examples, np.memmap)  # it is small
    assert test.labels == (None if kind == "npy" else ("a", "b", "c"))


@pytest.mark.usefixtures("mapped")
def test_compressed_arrays_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X, y=np.arange(10))
    assert zipfile.ZipFile(tmp_path / "d.npz").getinfo("x.npy").compress_type != zipfile.ZIP_STORED
    data, _ = open_data(tmp_path / "d.npz", VECTOR)
    assert not isinstance(data.examples, np.memmap)
    np.testing.assert_array_equal(read(data), X)


def test_a_single_npy_file_says_what_to_give(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(SurgeryError, match=r"x\.npy: data is .*; of \.npy files, give the folder"):
        open_data(tmp_path / "x.npy", VECTOR)
    with pytest.raises(SurgeryError, match="has no array y"):
        open_data(tmp_path, VECTOR)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.fromarray(RNG.integers(0, 256, (20 + index, 30, 3)).astype(np.uint8)).save(
                tmp_path / name / f"{index}.png"
            )
    return tmp_path


def test_images_beyond_the_memory_are_decoded_when_they_are_needed(images: Path) -> None:
    small, large = from_folder(images, RGB, memory=100), from_folder(images, RGB)
    assert isinstance(small.examples, ImageFiles)
    assert (small.examples.slow, large.examples.slow) == (True, False)  # type: ignore[union-attr]
    np.testing.assert_array_equal(read(small), read(large))
    np.testing.assert_array_equal(read(small, seed=3, epoch=1), read(large, seed=3, epoch=1))
    assert small.fingerprint() == large.fingerprint()
    np.testing.assert_array_equal(small.examples[2], large.examples[2])
    crop = Augment(resized_crop=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read(small.augmented(crop), seed=3), read(large.augmented(crop), seed=3))


def test_whole_images_are_kept_while_there_is_memory(images: Path) -> None:
    data = from_folder(images, RGB, memory=8 * 8 * 8 * 3 + 4000).augmented(Augment(crop={}))  # type: ignore[arg-type]
    first = read(data, seed=0)
    assert isinstance(data.examples, ImageFiles)
    kept = [image.nbytes for _, image in data.examples._whole.values()]
    assert len(kept) == 2  # of 1,800 bytes and more
    assert sum(kept) <= 4000
    for file in data.examples.files:
        if data.examples.files.index(file) in data.examples._whole:
            file.write_bytes(b"gone")
    np.testing.assert_array_equal(read(data, seed=0), first)


def test_a_change_of_a_file_changes_the_fingerprint(images: Path) -> None:
    before = from_folder(images, RGB).fingerprint()
    assert before == from_folder(images, RGB).fingerprint()
    Image.new("RGB", (9, 9)).save(images / "ants" / "0.png")
    assert from_folder(images, RGB).fingerprint() != before


def test_an_image_that_does_not_decode_later_is_named(images: Path) -> None:
    data = from_folder(images, RGB, memory=0)
    (images / "bees" / "2.png").write_bytes(b"no picture")
    with pytest.raises(SurgeryError, match=r"2\.png: does not decode"):
        read(data)
    assert len(from_folder(images, RGB, memory=0, skip_bad=True)) == 7


def labelled(*names: str) -> ir.Model:
    model = model_with_input("N", 3)
    set_labels(model, "out", list(names))
    return model


def test_names_of_classes_are_numbered_as_the_models_labels() -> None:
    pairs = [(x, name) for x, name in zip(X, ["dog", "cat"] * 5, strict=True)]
    model = labelled("bird", "cat", "dog")  # of which some are not there
    data, _ = as_dataset(pairs, model)
    assert data.targets.tolist() == [2, 1] * 5
    assert data.labels == ("bird", "cat", "dog")
    assert as_dataset(pairs, labelled("bird", "cat"))[0].targets.tolist() == [1, 0] * 5  # these are other classes


def test_names_of_an_outputs_classes_are_numbered_as_its_labels() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,2] a, float[N,3] b)",
        "a = Gemm(x, v) b = Gemm(x, w)",
        {"v": [3, 2], "w": [3, 3]},
    )
    set_labels(model, "b", ["z", "y", "x"])
    data, _ = as_dataset([(x, {"a": "x", "b": "x"}) for x in X], model)
    assert isinstance(data.targets, dict)
    assert (data.targets["a"].max(), data.targets["b"].min()) == (0, 2)


def test_class_numbers_in_an_archive_become_the_models(tmp_path: Path) -> None:
    numbers = np.array([0, 1, 1, 0, -1, 2, 0, 0, 0, 0])
    np.savez(tmp_path / "d.npz", x=X, y=numbers, labels=["dog", "cat", "bird"])
    data = open_part(tmp_path / "d.npz", labelled("bird", "cat", "dog", "fish"))
    assert data.targets.tolist() == [2, 1, 1, 2, -1, 0, 2, 2, 2, 2]
    assert data.labels == ("bird", "cat", "dog", "fish")
    hot = np.eye(3, dtype=np.float32)[np.abs(numbers)]
    np.savez(tmp_path / "hot.npz", x=X, y=hot, labels=["dog", "cat", "bird"])
    data = open_part(tmp_path / "hot.npz", labelled("bird", "cat", "dog", "fish"))
    np.testing.assert_array_equal(data.targets, np.eye(4)[[2, 1, 1, 2, 1, 0, 2, 2, 2, 2]])
    np.savez(tmp_path / "few.npz", x=X, y=numbers, labels=["dog", "cat"])
    with pytest.raises(SurgeryError, match="class number 2, but only 2 names"):
        open_part(tmp_path / "few.npz", labelled("bird", "cat", "dog"))


def test_examples_to_watch_are_numbered_as_those_to_train_on() -> None:
    train, _ = as_dataset([(x, name) for x, name in zip(X, ["bird", "dog"] * 5, strict=True)], VECTOR)
    watch, _ = as_dataset([(x, "dog") for x in X], VECTOR)
    assert watch.numbered_as(train).targets.tolist() == [1] * 10
    with pytest.raises(SurgeryError, match="the data to watch have a class 'cat', those to train on only bird, dog"):
        as_dataset([(x, "cat") for x in X], VECTOR)[0].numbered_as(train)


def test_flags_are_class_numbers_and_text_in_an_array_is_refused() -> None:
    data, _ = as_dataset((X, X[:, 0] > 0), VECTOR)
    assert data.targets.dtype == np.int64
    for targets in (np.array(["a"] * 10), np.array(["a"] * 10, object)):
        with pytest.raises(SurgeryError, match="number the classes from 0, or give pairs"):
            as_dataset((X, targets), VECTOR)
