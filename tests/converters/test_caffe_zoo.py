"""Real Caffe networks: the Model Zoo's definitions, and trained nets with the results they are known for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from converters import convert
from converters.caffe import caffe_pb2
from converters.caffe.read import parse_text
from surgery.marks import preprocessing
from tests.converters.caffe_checks import opencv, run

# Definitions that read a database do not say what is in it.
SHAPES = {"mnist": "1x28x28", "cifar10": "3x32x32"}
ZOO = [
    ("bvlc_alexnet/deploy.prototxt", {"prob": (1000,)}),
    ("bvlc_alexnet/train_val.prototxt", {"prob": (1000,)}),
    ("bvlc_googlenet/deploy.prototxt", {"prob": (1000,)}),
    (
        "bvlc_googlenet/train_val.prototxt",
        {"loss1/loss/prob": (1000,), "loss2/loss/prob": (1000,), "loss3/loss3/prob": (1000,)},
    ),
    ("bvlc_reference_caffenet/deploy.prototxt", {"prob": (1000,)}),
    ("bvlc_reference_caffenet/train_val.prototxt", {"prob": (1000,)}),
    ("bvlc_reference_rcnn_ilsvrc13/deploy.prototxt", {"fc-rcnn": (200,)}),
    ("cifar10/cifar10_full.prototxt", {"prob": (10,)}),
    ("cifar10/cifar10_full_sigmoid_train_test_bn.prototxt", {"prob": (10,)}),
    ("cifar10/cifar10_full_train_test.prototxt", {"prob": (10,)}),
    ("cifar10/cifar10_quick.prototxt", {"prob": (10,)}),
    ("cifar10/cifar10_quick_train_test.prototxt", {"prob": (10,)}),
    ("finetune_flickr_style/deploy.prototxt", {"prob": (20,)}),
    ("finetune_flickr_style/train_val.prototxt", {"prob": (20,)}),
    ("mnist/lenet.prototxt", {"prob": (10,)}),
    ("mnist/lenet_train_test.prototxt", {"prob": (10,)}),
    ("mnist/mnist_autoencoder.prototxt", {"decode1neuron": (784,)}),
    ("net_surgery/bvlc_caffenet_full_conv.prototxt", {"prob": (1000, 8, 8)}),
    ("squeezenet_v1.0/deploy.prototxt", {"prob": (1000, 1, 1)}),
    ("squeezenet_v1.0/train_val.prototxt", {"pool10": (1000, 1, 1)}),  # its loss is for training only
    ("squeezenet_v1.1/deploy.prototxt", {"prob": (1000, 1, 1)}),
    ("squeezenet_v1.1/train_val.prototxt", {"prob": (1000, 1, 1)}),
]
BIG = ("bvlc_alexnet", "bvlc_reference", "finetune", "net_surgery")  # 60 million parameters each


@pytest.mark.parametrize(
    ("name", "outputs"),
    [pytest.param(*case, id=case[0], marks=pytest.mark.slow if case[0].startswith(BIG) else ()) for case in ZOO],
)
def test_model_zoo_definitions_run(
    shared_data: Path, name: str, outputs: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    folder = name.split("/")[0]
    shape = SHAPES.get(folder) if "train" in name or "autoencoder" in name else None
    model = convert(shared_data / "caffe" / "zoo" / name, shape=shape)
    (input,) = model.graph.inputs
    assert input.shape is not None
    x = rng.normal(size=(1, *(d for d in input.shape if isinstance(d, int))))
    found = run(model, x.astype(np.float32))
    assert {key: array.shape[1:] for key, array in found.items()} == outputs
    for output in model.graph.outputs:  # the shapes that the converter worked out are those that come out
        assert output.shape is not None
        assert tuple(d for d in output.shape if isinstance(d, int)) == found[str(output.name)].shape[1:]
        assert np.isfinite(found[str(output.name)]).all()


def test_all_of_the_zoo_is_in_this_test(shared_data: Path) -> None:
    folder = shared_data / "caffe" / "zoo"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*.prototxt") if "solver" not in p.name}
    assert names == {name for name, _ in ZOO}


@pytest.mark.parametrize("name", [
    "squeezenet_v1.1/deploy.prototxt",
    "cifar10/cifar10_full.prototxt",
    "bvlc_googlenet/deploy.prototxt",
    pytest.param("bvlc_alexnet/deploy.prototxt", marks=pytest.mark.slow),
    pytest.param("net_surgery/bvlc_caffenet_full_conv.prototxt", marks=pytest.mark.slow),
])  # fmt: skip
def test_definitions_equal_opencv(shared_data: Path, tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    """With the same weights, those of the fillers."""
    definition = shared_data / "caffe" / "zoo" / name
    model = convert(definition, seed=3)
    net = parse_text(definition, caffe_pb2.NetParameter)
    for layer in net.layer:
        for role in ("weight", "bias"):
            value = model.graph.initializers.get(f"{layer.name}.{role}")
            if value is not None:
                assert value.const_value is not None
                array = value.const_value.numpy()
                layer.blobs.add(data=array.ravel()).shape.dim.extend(array.shape)
    weights = tmp_path / "net.caffemodel"
    weights.write_bytes(net.SerializeToString())
    (input,) = model.graph.inputs
    assert input.shape is not None
    x = 50 * rng.normal(size=(1, *(d for d in input.shape if isinstance(d, int)))).astype(np.float32)
    expected = opencv(definition, weights, x)["prob"]
    np.testing.assert_allclose(run(model, x)["prob"], expected, atol=1e-5)


def test_old_lenet_reads_mnist(shared_data: Path) -> None:
    """The definition in the V1 caffemodel itself, which is the training net's and has no input shape."""
    with np.load(shared_data / "mnist.npz") as data:
        x, y = data["x_test"][:2000, None], data["y_test"][:2000]
    for shape in ("1x28x28", None):
        model = convert(shared_data / "caffe" / "v1" / "lenet.caffemodel", shape=shape)
        how = preprocessing(model, "data")
        assert how is not None
        assert (how.color, how.scale) == ("gray", 0.00390625)
        answers = run(model, x.astype(np.float32) * np.float32(how.scale))["prob"].argmax(1)
        assert (answers == y).mean() == 0.9865


@pytest.mark.parametrize("name", ["cifar10_quick", "cifar10_full"])
def test_old_cifar_nets_equal_opencv(shared_data: Path, name: str, rng: np.random.Generator) -> None:
    definition = shared_data / "caffe" / "v1" / f"{name}.prototxt"
    x = 40 * rng.normal(size=(4, 3, 32, 32)).astype(np.float32)
    expected = opencv(definition, definition.with_suffix(".caffemodel"), x)["prob"]
    np.testing.assert_allclose(run(convert(definition), x)["prob"], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "accuracy"), [("cifar10_quick", 0.731), ("cifar10_full", 0.795)])
def test_old_cifar_nets_reach_their_accuracy(shared_data: Path, name: str, accuracy: float) -> None:
    path = os.environ.get("CIFAR10_NPZ")
    if not path:
        pytest.skip("CIFAR10_NPZ names no file with x_train, x_test [N, 32, 32, 3] and y_test of CIFAR-10")
    model = convert(shared_data / "caffe" / "v1" / f"{name}.prototxt")
    with np.load(path) as data:
        mean = data["x_train"].mean(0, dtype=np.float64).astype(np.float32)
        images = (data["x_test"][:1000] - mean).transpose(0, 3, 1, 2).astype(np.float32)
        answers = run(model, images)["prob"].argmax(1)
        assert abs((answers == data["y_test"][:1000].ravel()).mean() - accuracy) < 0.005


def test_face_detector_equals_its_publishers_onnx_file(shared_data: Path, rng: np.random.Generator) -> None:
    folder = shared_data / "caffe" / "rfb320"
    x = rng.normal(size=(1, 3, 240, 320)).astype(np.float32)
    runner = onnxruntime.InferenceSession(folder / "RFB-320.onnx", providers=["CPUExecutionProvider"])
    names = [o.name for o in runner.get_outputs()]
    expected = dict(zip(names, runner.run(None, {runner.get_inputs()[0].name: x}), strict=True))
    model = convert(folder / "RFB-320.prototxt")
    found = run(model, x)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
    two = run(model, np.concatenate([x, x[..., ::-1]]))  # its Reshape layers say 1, the batch's size there
    np.testing.assert_allclose(two["scores"][:1], expected["scores"], atol=1e-5)
