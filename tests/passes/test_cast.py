"""cast: half precision for inference, against float32's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from converters import convert
from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.marks import marks, set_marks
from surgery.passes import Cast
from surgery.training.optimizers import Sgd, chain
from surgery.training.step import training_step
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of

IMAGE = np.random.default_rng(1).normal(size=(2, 3, 10, 10)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "batch"),
    [(cnn, IMAGE), (mlp, ROW), (squeezenet, IMAGE[:, :, :9, :9]), (lambda: mlp(9), ROW)],
)
def test_float16_gives_nearly_the_same(make: Callable[[], ir.Model], batch: np.ndarray) -> None:
    model = make()
    (before,) = run(model, batch)
    assert Cast(to="float16")(model).changes
    assert {a.dtype for a in weights_of(model).values()} == {np.dtype(np.float16)}
    (after,) = run(model, batch)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, rtol=0.02, atol=1e-3)
    assert not Cast(to="float16")(model).changes


def test_names_marks_inputs_and_outputs_stay(tmp_path: Path) -> None:
    model = mlp()
    set_marks(model.graph.initializers["a.weight"], learning_rate=0.5)
    changes = Cast(to="float16")(model).changes
    assert [str(c) for c in changes] == ["model: 82 numbers in 4 weights now float16"]
    save(model, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    assert set(weights_of(again)) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert marks(again.graph.initializers["a.weight"]).learning_rate == 0.5
    assert [(v.name, v.dtype) for v in [*again.graph.inputs, *again.graph.outputs]] == [
        ("x", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT),
    ]
    assert again.graph.node("a").outputs[0].dtype == ir.DataType.FLOAT16


def test_bfloat16_follows_the_specification() -> None:
    """Up to operator set 21, a Conv takes no bfloat16; a MatMul does."""
    model = cnn()
    Cast(to="bfloat16")(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.node("c1").outputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.node("h").outputs[0].dtype == ir.DataType.BFLOAT16


def test_bfloat16_is_younger_than_some_operator_sets() -> None:
    with pytest.raises(SurgeryError, match="no operator of the model has weights that may be bfloat16"):
        Cast(to="bfloat16")(mlp(11))


def test_layers_to_keep() -> None:
    model = cnn()
    (before,) = run(model, IMAGE)
    Cast(to="float16", keep=["c2", "head"])(model)
    kinds = {name: array.dtype.name for name, array in weights_of(model).items()}
    assert {n for n, k in kinds.items() if k == "float32"} == {"w2", "w3", "b3"}
    np.testing.assert_allclose(run(model, IMAGE)[0], before, rtol=0.02)
    assert not Cast(to="float16", keep=["c2", "head"])(model).changes


def test_what_operators_take_in_float32_only() -> None:
    """Resize's scales are float32 by specification; a Cast to float32 in between becomes one to half."""
    model = parse(
        "(float[N,3,4,4] x) => (float[N,5,8,8] y)",
        "i = Cast<to = 7>(x) f = Cast<to = 1>(i) c = Conv(f, w) y = Resize(c, , scales)",
        {"w": [5, 3, 1, 1], "scales": [4]},
    )
    model.graph.initializers["scales"].const_value = ir.tensor(np.array([1, 1, 2, 2], np.float32), name="scales")
    image = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    (before,) = run(model, image)
    Cast(to="float16")(model)
    assert weights_of(model)["scales"].dtype == np.float32
    np.testing.assert_allclose(run(model, image)[0], before, rtol=0.01)


def test_a_weight_that_both_kinds_of_layers_share() -> None:
    model = parse("(float[N,8] x) => (float[N,8] y)", "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)", {"w": [8, 8]})
    (before,) = run(model, ROW)
    Cast(to="float16", keep="a")(model)
    assert {n: a.dtype.name for n, a in weights_of(model).items()} == {"w": "float32", "w/float16": "float16"}
    np.testing.assert_allclose(run(model, ROW)[0], before, rtol=0.02)


def test_numbers_beyond_the_range_are_told() -> None:
    model = parse("(float[N,8] x) => (float[N,1] y)", "y = MatMul(x, w)", {"w": [8, 1]})
    array = weights_of(model)["w"].copy()
    array[2] = -1e6
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    changes = Cast(to="float16")(model).changes
    assert str(changes[1]) == "model: 1 numbers beyond the range of float16 set to its ends"
    assert weights_of(model)["w"].min() == -65504


def test_control_flow() -> None:
    model = parse(
        "(float[N,8] x, bool c) => (float[N,8] y)",
        "y = If(c) <then_branch = t () => (float[N,8] p) {p = Relu(x)}, "
        "else_branch = e () => (float[N,8] q) {q = Tanh(x)}>",
        {},
    )
    with pytest.raises(SurgeryError, match="control flow"):
        Cast(to="float16")(model)


def test_our_lenet(lenet_files: tuple[Path, Path]) -> None:
    model = convert(lenet_files[0], weights=lenet_files[1])
    images = np.random.default_rng(0).uniform(size=(4, 1, 28, 28)).astype(np.float32)
    (before,) = run(model, images)
    Cast(to="float16")(model)
    np.testing.assert_allclose(run(model, images)[0], before, atol=5e-3)


def test_training_asks_for_the_float32_model() -> None:
    model = cnn()
    Cast(to="float16", keep="c1")(model)
    with pytest.raises(SurgeryError, match="parameter 'w2' is FLOAT16; training takes float32"):
        training_step(model, chain(Sgd()))
