"""Caffe's old formats, phases, data layers and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from converters import convert
from converters.caffe import caffe_pb2
from surgery.errors import SurgeryError
from surgery.marks import marks, preprocessing
from tests.converters.caffe_checks import (
    V2,
    array,
    opencv,
    run,
    write,
)

V0 = """
name: "old"
input: "data" input_dim: 1 input_dim: 2 input_dim: 8 input_dim: 8
layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "data" top: "padded" }
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 group: 2 stride: 1 biasterm: true
                 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.3 }
                 blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "padded" top: "conv" }
layers { layer { name: "relu" type: "relu" } bottom: "conv" top: "conv" }
layers { layer { name: "pool" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "conv" top: "pool" }
layers { layer { name: "norm" type: "lrn" local_size: 3 alpha: 0.1 beta: 0.75 } bottom: "pool" top: "norm" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.25 } bottom: "norm" top: "norm" }
layers { layer { name: "ip" type: "innerproduct" num_output: 5 biasterm: false weight_filler { type: "xavier" } }
         bottom: "norm" top: "ip" }
layers { layer { name: "prob" type: "softmax" } bottom: "ip" top: "prob" }
"""
V1 = """
name: "newer"
input: "data" input_dim: 1 input_dim: 2 input_dim: 8 input_dim: 8
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv"
         blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
         convolution_param { num_output: 4 kernel_size: 3 pad: 1 group: 2
                             weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.3 } } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "pool" type: POOLING bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layers { name: "norm" type: LRN bottom: "pool" top: "norm" lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 } }
layers { name: "drop" type: DROPOUT bottom: "norm" top: "norm" dropout_param { dropout_ratio: 0.25 } }
layers { name: "ip" type: INNER_PRODUCT bottom: "norm" top: "ip"
         inner_product_param { num_output: 5 bias_term: false weight_filler { type: "xavier" } } }
layers { name: "prob" type: SOFTMAX bottom: "ip" top: "prob" }
"""


@pytest.mark.parametrize("text", [V0, V1], ids=["V0", "V1"])
def test_old_formats_are_the_current_one(tmp_path: Path, text: str, rng: np.random.Generator) -> None:
    old, new = convert(write(tmp_path, text)), convert(write(tmp_path, V2))
    x = rng.normal(size=(2, 2, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(old, x)["prob"], run(new, x)["prob"])
    assert [n.name for n in old.graph] == [n.name for n in new.graph]
    for name, value in new.graph.initializers.items():
        assert marks(old.graph.initializers[name]) == marks(value), name


@pytest.mark.parametrize("text", [V0, V1, V2], ids=["V0", "V1", "V2"])
def test_weights_of_all_formats_are_read(tmp_path: Path, text: str, rng: np.random.Generator) -> None:
    """Old weights have four dimensions, ones in front; OpenCV reads V1 and V2."""
    conv, bias, ip = (rng.normal(size=s).astype(np.float32) for s in ((4, 1, 3, 3), (4,), (5, 64)))
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    for layer in [*net.layer, *net.layers]:
        name = layer.name or layer.layer.name
        holder = layer.layer if text is V0 else layer
        for values in {"conv": [conv, bias], "ip": [ip]}.get(name, []):
            blob = holder.blobs.add(data=values.ravel())
            if text is V2:
                blob.shape.dim.extend(values.shape)
            else:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
    (tmp_path / "net.caffemodel").write_bytes(net.SerializeToString())
    definition = write(tmp_path, text)
    x = rng.normal(size=(2, 2, 8, 8)).astype(np.float32)
    found = run(convert(definition), x)["prob"]
    reference = write(tmp_path, V2, "other.prototxt")
    current = text_format.Parse(V2, caffe_pb2.NetParameter())
    for layer in current.layer:
        for values in {"conv": [conv, bias], "ip": [ip]}.get(layer.name, []):
            layer.blobs.add(data=values.ravel()).shape.dim.extend(values.shape)
    (tmp_path / "other.caffemodel").write_bytes(current.SerializeToString())
    np.testing.assert_allclose(found, opencv(reference, tmp_path / "other.caffemodel", x)["prob"], atol=1e-6)


def test_v1_shares_parameters_by_name(tmp_path: Path) -> None:
    text = """input: "x" input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1
              layers { name: "a" type: INNER_PRODUCT bottom: "x" top: "a" param: "w" param: "b"
                       inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
              layers { name: "c" type: INNER_PRODUCT bottom: "a" top: "c" param: "w" param: "b"
                       inner_product_param { num_output: 3 } }"""
    model = convert(write(tmp_path, text))
    assert set(model.graph.initializers) == {"a.weight", "a.bias"}


TRAIN_TEST = """
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        transform_param { scale: 0.5 mirror: true crop_size: 8 mean_value: 100 }
        data_param { source: "train" batch_size: 64 } }
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { scale: 0.5 crop_size: 6 mean_value: 100 }
        data_param { source: "test" batch_size: 10 } }
layer { name: "noise" type: "Power" bottom: "data" top: "data" include { phase: TRAIN } power_param { shift: 5 } }
layer { name: "same" type: "Power" bottom: "data" top: "same" exclude { phase: TRAIN } power_param { scale: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "same" top: "ip"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_phases_data_layers_and_losses(tmp_path: Path, rng: np.random.Generator) -> None:
    model = convert(write(tmp_path, TRAIN_TEST))
    assert [(i.name, str(i.shape)) for i in model.graph.inputs] == [("data", "[N,3,6,6]")]
    assert [(n.name, n.op_type) for n in model.graph if "/" not in str(n.name)] == [
        ("same", "Mul"),
        ("ip", "Gemm"),
        ("loss", "Softmax"),
    ]
    assert [o.name for o in model.graph.outputs] == ["prob"]
    how = preprocessing(model, "data")
    assert how is not None
    assert (how.color, how.size, how.scale, how.mean) == ("bgr", (6, 6), 0.5, (50.0,))
    x = rng.normal(size=(3, 3, 6, 6)).astype(np.float32)
    z = 2 * x.reshape(3, -1) @ array(model, "ip.weight").T
    expected = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(run(model, x)["prob"], expected, rtol=1e-5)


@pytest.mark.parametrize(("rule", "runs"), [
    ("include { phase: TEST }", True),
    ("include { phase: TRAIN }", False),
    ("include { phase: TRAIN } include { phase: TEST }", True),
    ("exclude { phase: TEST }", False),
    ("include { min_level: 1 }", True),
    ("include { min_level: 3 }", False),
    ("include { max_level: 1 }", False),
    ('include { stage: "deploy" }', True),
    ('include { stage: "deploy" stage: "other" }', False),
    ('include { not_stage: "deploy" }', False),
    ('exclude { stage: "other" }', True),
])  # fmt: skip
def test_rules(tmp_path: Path, rule: str, runs: bool) -> None:
    text = f"""state {{ level: 2 stage: "deploy" }}
               layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 3 }} }} }}
               layer {{ name: "a" type: "ReLU" bottom: "x" top: "a" }}
               layer {{ name: "b" type: "ReLU" bottom: "a" top: "b" {rule} }}"""
    model = convert(write(tmp_path, text))
    assert [n.name for n in model.graph] == (["a", "b"] if runs else ["a"])


def test_a_loss_leaves_the_activation_that_is_there_already(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "loss" }
              layer { name: "p" type: "Softmax" bottom: "x" top: "p" }"""
    model = convert(write(tmp_path, text))
    assert [n.name for n in model.graph] == ["p"]
    assert [o.name for o in model.graph.outputs] == ["p"]


@pytest.mark.parametrize(("loss", "op_types"), [
    ('"SigmoidCrossEntropyLoss" bottom: "a" bottom: "label" top: "loss"', ["Relu", "Sigmoid"]),
    ('"SoftmaxWithLoss" bottom: "a" bottom: "label" top: "loss" top: "out"', ["Relu", "Softmax"]),
    ('"EuclideanLoss" bottom: "a" bottom: "label" top: "loss"', ["Relu"]),
    ('"HingeLoss" bottom: "a" bottom: "label" top: "loss"', ["Relu"]),
    ('"InfogainLoss" bottom: "a" bottom: "label" top: "loss"', ["Relu", "Softmax"]),
    ('"MultinomialLogisticLoss" bottom: "a" bottom: "label" top: "loss"', ["Relu"]),
    ('"ContrastiveLoss" bottom: "a" bottom: "b" bottom: "label" top: "loss"', ["Relu", "Abs"]),
    ('"Accuracy" bottom: "a" bottom: "label" top: "loss"', ["Relu"]),
])  # fmt: skip
def test_losses_leave_outputs(tmp_path: Path, loss: str, op_types: list[str]) -> None:
    text = f"""layer {{ name: "x" type: "Data" top: "x" top: "label" transform_param {{ crop_size: 3 }} }}
               layer {{ name: "a" type: "ReLU" bottom: "x" top: "a" }}
               layer {{ name: "b" type: "AbsVal" bottom: "x" top: "b" }}
               layer {{ name: "silent" type: "Silence" bottom: "b" }}
               layer {{ name: "loss" type: {loss} }}"""
    model = convert(write(tmp_path, text))
    assert [n.op_type for n in model.graph] == op_types
    assert [i.name for i in model.graph.inputs] == ["x"]
    if '"out"' in loss:
        assert [o.name for o in model.graph.outputs] == ["out"]


def test_mean_image_becomes_its_channels_means(tmp_path: Path, rng: np.random.Generator) -> None:
    mean = rng.random((3, 8, 8)).astype(np.float32) * 255
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=8, width=8, data=mean.ravel())
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    text = """layer { name: "d" type: "Data" top: "data" top: "label"
                      transform_param { mean_file: "examples/set/mean.binaryproto" scale: 0.01 } }
              layer { name: "a" type: "ReLU" bottom: "data" top: "a" }"""
    model = convert(write(tmp_path, text))
    assert str(model.graph.inputs[0].shape) == "[N,3,8,8]"
    how = preprocessing(model, "data")
    assert how is not None
    np.testing.assert_allclose(how.mean, 0.01 * mean.mean((1, 2)), rtol=1e-5)
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString()[:-7])
    with pytest.raises(SurgeryError, match=r"mean\.binaryproto"):
        convert(write(tmp_path, text))


def test_without_its_mean_image_a_net_says_nothing_of_preprocessing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = """layer { name: "d" type: "Data" top: "data" transform_param { mean_file: "m.binaryproto" crop_size: 4 } }
              layer { name: "a" type: "ReLU" bottom: "data" top: "a" }"""
    assert preprocessing(convert(write(tmp_path, text)), "data") is None
    assert "m.binaryproto" in caplog.text


def test_a_deploy_net_takes_its_preprocessing_from_the_net_it_was_trained_as(tmp_path: Path) -> None:
    net = text_format.Parse(TRAIN_TEST, caffe_pb2.NetParameter())
    ip = next(layer for layer in net.layer if layer.name == "ip")
    ip.blobs.add(data=np.ones(4 * 108)).shape.dim.extend([4, 108])
    ip.blobs.add(data=np.ones(4)).shape.dim.extend([4])
    (tmp_path / "net.caffemodel").write_bytes(net.SerializeToString())
    text = """input: "data" input_shape { dim: 1 dim: 3 dim: 6 dim: 6 }
              layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                      inner_product_param { num_output: 4 } }"""
    how = preprocessing(convert(write(tmp_path, text, "net_deploy.prototxt")), "data")
    assert how is not None
    assert (how.scale, how.mean, how.size) == (0.5, (50.0,), (6, 6))


@pytest.mark.parametrize(("height", "width", "resize"), [(256, 300, (256, 300)), (0, 0, None), (3, 9, None)])
def test_images_are_resized_as_the_data_layer_says(
    tmp_path: Path, height: int, width: int, resize: tuple[int, int] | None
) -> None:
    text = f"""layer {{ name: "d" type: "ImageData" top: "data" transform_param {{ crop_size: 4 mean_value: 5 }}
                      image_data_param {{ source: "l.txt" new_height: {height} new_width: {width} }} }}
               layer {{ name: "a" type: "ReLU" bottom: "data" top: "a" }}"""
    how = preprocessing(convert(write(tmp_path, text)), "data")
    assert how is not None
    assert (how.resize, how.size) == (resize, (4, 4))
