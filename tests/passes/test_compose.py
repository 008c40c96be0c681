"""Twenty passes at once on the architectures of the onnx package's light models leave a checked, runnable model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.io import load, save
from surgery.layers import find_layer, head, layers
from surgery.marks import labels, marks
from surgery.passes.editing import constant_of, drop_unused
from surgery.recipe import apply
from surgery.runtime import session

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = ["squeezenet"]
LARGE = ["shufflenet", "inception_v1", "densenet121", "inception_v2", "resnet50", "zfnet512", "bvlc_alexnet", "vgg19"]


def architecture(name: str, folder: Path) -> ir.Model:
    """A light model, whose weights come from ConstantOfShape operators, with weights instead of them."""
    model = load(LIGHT / f"light_{name}.onnx")
    random = np.random.default_rng(0)
    for node in list(model.graph):
        if node.op_type == "ConstantOfShape":
            shape = constant_of(node.inputs[0])
            assert shape is not None
            dims = [int(d) for d in shape]
            if len(dims) > 1 and np.prod(dims[1:]) > 1:  # a weight
                data = random.normal(0, np.sqrt(2 / np.prod(dims[1:])), dims).astype(np.float32)
            else:
                data = random.uniform(0.5, 1, dims).astype(np.float32)
            old = node.outputs[0]
            value = ir.Value(
                name=old.name, shape=ir.Shape(dims), type=old.type, const_value=ir.tensor(data, name=old.name)
            )
            old.replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
            model.graph.register_initializer(value)
            drop_unused(model.graph, node.inputs)
    save(model, folder / "architecture.onnx")
    return load(folder / "architecture.onnx")


def recipe(model: ir.Model) -> list[dict[str, object]]:
    """Twenty passes with the names of a model."""
    folded = model.clone()
    apply(folded, [{"fold_batchnorm": None}])
    owners = [layer for layer in layers(folded) if layer.index]
    first, second, last = owners[0].name, owners[1].name, head(model).name
    image, output = str(model.graph.inputs[0].name), str(model.graph.outputs[0].name)
    relu = next(layer.name for layer in layers(model) if layer.op_type == "Relu")
    return [
        {"fold_batchnorm": None},
        {"unfold": second},
        {"rename": {image: "image", output: "probabilities"}},
        {"set_batch": 2},
        {"set_input_size": {"size": 224}},
        {"replace_head": {"units": 7, "activation": "linear", "keep": [3, 1], "labels": list("abcdefg")}},
        {"add_hidden": {"units": 11, "name": "extra"}},
        {"replace_activation": {"layers": relu, "activation": "leaky_relu"}},
        {"insert": {"layers": "extra", "operator": "Identity"}},
        {"insert": {"layers": second, "operator": "LeakyRelu", "attributes": {"alpha": 0.1}, "name": "leak"}},
        {"reinitialize": {"layers": second, "initializer": "he"}},
        {"freeze": "all"},
        {"unfreeze": {"last": 2}},
        {"insert_dropout": {"input": 0.1, "hidden": 0.3}},
        {"max_norm": {"value": 3}},
        {"learning_rate": {"layers": first, "multiplier": 0.1, "bias": 0.2}},
        {"replace_head": {"labels": list("vwxyz"), "initializer": "he", "seed": 1}},
        {"remove": f"{second}/leak"},
        {"run": "CommonSubexpressionEliminationPass"},
        {"run": "DeduplicateInitializersPass"},
        {"rename": {last: "classifier"}},
        {"prune_outputs": "probabilities"},
        {"merge_labels": {"vw": ["v", "w"]}},
    ]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_twenty_passes(name: str, tmp_path: Path) -> None:
    model = architecture(name, tmp_path)
    steps = recipe(model)
    assert len(steps) > 20
    assert apply(model, steps)
    save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)

    again = load(tmp_path / "m.onnx")
    run = session(again, ["CPUExecutionProvider"])
    (scores,) = run.run(None, {"image": np.random.default_rng(1).normal(size=(2, 3, 224, 224)).astype(np.float32)})
    np.testing.assert_allclose(scores.reshape(2, 4).sum(1), 1, rtol=1e-5)
    assert np.isfinite(scores).all()
    assert head(again).name == "classifier"
    assert labels(again, "probabilities") == ["vw", "x", "y", "z"]
    assert not find_layer(again, next(layer.name for layer in layers(again) if layer.index)).trainable
    assert all(marks(p).trainable for p in head(again).parameters.values())
    assert sum(n.op_type == "Dropout" for n in again.graph) >= 2


@pytest.mark.parametrize("name", ["squeezenet", pytest.param("shufflenet", marks=pytest.mark.slow)])
def test_cut_anywhere(name: str, tmp_path: Path) -> None:
    whole = architecture(name, tmp_path)
    for point in [layer.name for layer in layers(whole) if layer.index][::12]:
        model = whole.clone()
        apply(model, [{"cut": point}])
        run = session(model, ["CPUExecutionProvider"])
        image = np.ones([1, 3, 224, 224], np.float32)
        (features,) = run.run(None, {str(model.graph.inputs[0].name): image})
        assert list(features.shape) == list(model.graph.outputs[0].shape or ())
