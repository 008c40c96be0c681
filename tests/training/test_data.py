"""Training on data as users bring them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

import surgery
from surgery.data import Augment, Dataset, from_arrays
from surgery.data.augment import Crop
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing, labels, preprocessing, set_preprocessing
from surgery.recipe import load_recipe
from surgery.training.callbacks import Callback
from surgery.training.checkpoint import Checkpoints
from surgery.training.trainer import Trained
from tests.graphs import parse

pytestmark = pytest.mark.training
COLORS = np.array([[230, 20, 20], [20, 20, 230]], np.uint8)


def network(layout: str) -> ir.Model:
    """Tells two colours apart, of images of 8 × 6 pixels."""
    shape, turn = (
        ("8,6,3", "t = Transpose<perm = [0, 3, 1, 2]>(x)") if layout == "NHWC" else ("3,8,6", "t = Identity(x)")
    )
    return parse(
        f"(float[N,{shape}] x) => (float[N,2] y)",
        f"{turn} c = Conv(t, w1, b1) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) "
        "l = Gemm<transB = 1>(f, w2, b2) y = Softmax(l)",
        {"w1": [4, 3, 3, 3], "b1": [4], "w2": [2, 4], "b2": [2]},
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, color in enumerate(COLORS):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (12, 16), tuple(map(int, color))).save(tmp_path / "data" / str(number) / f"{index}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_model_that_says_nothing_of_images_learns_them_and_says_how(images: Path, layout: str) -> None:
    model = network(layout)
    result = surgery.train(model, images, epochs=40, batch_size=8, learning_rate=0.1)
    assert surgery.evaluate(result.model, images).value == 1
    assert preprocessing(result.model, "x") == Preprocessing(layout=layout, scale=1 / 255)  # type: ignore[arg-type]
    assert preprocessing(model, "x") is None
    pixels = np.broadcast_to(COLORS[:, None, None], (2, 8, 6, 3))
    assert surgery.predict(result.model, np.ascontiguousarray(pixels)).argmax(1).tolist() == [0, 1]


def test_what_a_model_says_of_images_is_kept(images: Path) -> None:
    model = network("NCHW")
    set_preprocessing(model, "x", Preprocessing(scale=1 / 64))
    assert preprocessing(surgery.train(model, images, epochs=1).model, "x") == Preprocessing(scale=1 / 64)
    floats = np.zeros((4, 3, 8, 6), np.float32), np.arange(4) % 2
    assert preprocessing(surgery.train(network("NCHW"), floats, epochs=1).model, "x") is None


def examples_with_a_nan() -> Dataset:
    examples = np.random.default_rng(0).normal(size=(12, 3, 8, 6)).astype(np.float32)
    examples[5, 2, 1, 0] = np.nan
    return from_arrays(examples, np.arange(12) % 2, network("NCHW"))


def test_examples_that_are_not_numbers_are_not_blamed_on_the_learning_rate() -> None:
    bad = examples_with_a_nan()
    good = Dataset(np.zeros((4, 3, 8, 6), np.float32), np.arange(4) % 2)
    with pytest.raises(SurgeryError, match=r"examples 5 .*are not finite numbers"):
        surgery.train(network("NCHW"), bad, epochs=2, batch_size=4)
    with pytest.raises(SurgeryError, match=r"examples 5 .*are not finite numbers"):
        surgery.train(network("NCHW"), good, validation=bad, epochs=1)
    with pytest.raises(SurgeryError, match=r"examples 5 .*are not finite numbers"):
        surgery.evaluate(network("NCHW"), bad)


def test_a_learning_rate_that_is_too_high_is_still_told_as_such() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(12, 3, 8, 6)).astype(np.float32), np.arange(12) % 2
    result = surgery.train(network("NCHW"), data, epochs=20, batch_size=4, learning_rate=1e30)
    assert result.ending == "diverged"
    assert "lower the learning rate" in result.message


def test_the_part_of_a_path_that_is_evaluated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"train": 6, "test": 4}
    arrays = {f"x_{part}": rng.normal(size=(count, 3, 8, 6)) for part, count in sizes.items()}
    arrays |= {f"y_{part}": np.arange(count) % 2 for part, count in sizes.items()}
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    model = network("NCHW")
    assert surgery.evaluate(model, tmp_path / "d.npz").examples == 4
    assert surgery.evaluate(model, tmp_path / "d.npz", split="train").examples == 6
    with pytest.raises(SurgeryError, match="no part 'val'; it has train, test"):
        surgery.evaluate(model, tmp_path / "d.npz", split="val")


def test_class_names_of_each_output_are_kept(tmp_path: Path, images: Path) -> None:
    model = parse(
        "(float[N,3,8,6] x) => (float[N,2] color, float[N,3] size)",
        "f = Flatten(x) color = Gemm<transB = 1>(f, w, b) size = Gemm<transB = 1>(f, v, c)",
        {"w": [2, 144], "b": [2], "v": [3, 144], "c": [3]},
    )
    rows = [f"{file.relative_to(tmp_path)},{'red' if file.parent.name == '0' else 'blue'},{'SML'[i % 3]}"
            for i, file in enumerate(sorted(images.rglob("*.png")))]  # fmt: skip
    (tmp_path / "d.csv").write_text("\n".join(["path,color,size", *rows]))
    losses = {"color": "cross_entropy", "size": "cross_entropy"}
    result = surgery.train(model, tmp_path / "d.csv", epochs=1, losses=losses)
    assert labels(result.model, "color") == ["blue", "red"]
    assert labels(result.model, "size") == ["L", "M", "S"]
    again = surgery.train(network("NCHW"), images, epochs=1)
    assert labels(again.model, "y") == ["0", "1"]


def test_augmented_training_repeats_by_its_seed_and_goes_on_to_the_same_numbers(images: Path, tmp_path: Path) -> None:
    how = {
        "augment": {"resized_crop": True, "horizontal_flip": True, "color_jitter": 0.3, "mixup": 0.4, "cutmix": 1.0},
        "sampling": "balanced", "batch_size": 4, "learning_rate": 0.05, "metrics": ("f1", "top_1"), "validation": 0.25,
    }  # fmt: skip
    whole, again = (surgery.train(network("NCHW"), images, epochs=4, **how) for _ in range(2))
    plain = surgery.train(network("NCHW"), images, epochs=4, **{**how, "augment": None})
    other = surgery.train(network("NCHW"), images, epochs=4, seed=1, **how)

    def losses(result: Trained) -> list[float]:
        return [record["loss"] for record in result.history]

    assert losses(whole) == losses(again)
    assert losses(whole) != losses(plain)
    assert losses(whole) != losses(other)
    assert {"val_f1", "val_top_1", "val_accuracy"} <= set(whole.history[0])

    class Interrupt(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            if (epoch, step) == (3, 2):
                raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path / "c", steps=1)
    first = surgery.train(network("NCHW"), images, epochs=4, checkpoints=checkpoints, callbacks=[Interrupt()], **how)
    assert first.ending == "interrupted"
    rest = surgery.train(network("NCHW"), images, epochs=4, checkpoints=tmp_path / "c", resume=True, **how)
    assert losses(rest) == losses(whole)


def test_a_recipe_says_how_examples_are_changed(images: Path, tmp_path: Path) -> None:
    text = "train: {epochs: 1, sampling: balanced, augment: {crop: {padding: 2}, horizontal_flip: true, rotate: 10}}"
    (tmp_path / "r.yaml").write_text(text)
    settings = load_recipe(tmp_path / "r.yaml").train
    assert settings.augment == Augment(crop=Crop(padding=2), horizontal_flip=0.5, rotate=10)
    assert settings.sampling == "balanced"
    (tmp_path / "bad.yaml").write_text("train: {augment: {horizontal_flop: true}}")
    with pytest.raises(SurgeryError, match=r"horizontal_flop.*horizontal_flip"):
        load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (6, 2, 2)])
def test_targets_of_other_dimensions_are_refused_before_anything_runs(shape: tuple[int, ...]) -> None:
    model = parse("(float[N,4] x) => (float[N,2] y)", "y = Gemm(x, w)", {"w": [4, 2]})
    data = np.zeros((6, 4), np.float32), np.zeros(shape, np.float32)
    for run in (surgery.train, surgery.evaluate):
        with pytest.raises(SurgeryError, match=r"targets of shape \[.*\] do not fit the output 'y' of 2 units"):
            run(model, data)
