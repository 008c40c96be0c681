"""Caffe's formats and conventions: old versions, phases, data layers, losses, shared parameters, fillers, files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from google.protobuf import text_format

from converters import convert
from converters.caffe import caffe_pb2
from converters.caffe.context import Context
from converters.caffe.fillers import fill
from surgery.errors import SurgeryError
from surgery.marks import marks, preprocessing
from tests.converters.caffe_checks import opencv, run, write_net

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
V2 = """
name: "current"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 group: 2
                            weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.3 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 } }
layer { name: "drop" type: "Dropout" bottom: "norm" top: "norm" dropout_param { dropout_ratio: 0.25 } }
layer { name: "ip" type: "InnerProduct" bottom: "norm" top: "ip"
        inner_product_param { num_output: 5 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def write(folder: Path, text: str, name: str = "net.prototxt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


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


SHARED = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
            layer { name: "a" type: "InnerProduct" bottom: "x" top: "a"
                    param { name: "w" lr_mult: 0.1 } param { name: "b" }
                    inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 1 } } }
            layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" param { name: "w" } param { name: "b" }
                    inner_product_param { num_output: 3 } }"""


def test_shared_parameters_stay_shared(tmp_path: Path, rng: np.random.Generator) -> None:
    model = convert(write(tmp_path, SHARED))
    assert set(model.graph.initializers) == {"a.weight", "a.bias"}
    assert marks(model.graph.initializers["a.weight"]).learning_rate == 0.1
    x, w = rng.normal(size=(2, 3)).astype(np.float32), array(model, "a.weight")
    np.testing.assert_allclose(run(model, x)["c"], x @ w.T @ w.T, rtol=1e-4)


def test_parameters_of_other_sizes_cannot_be_shared(tmp_path: Path) -> None:
    text = SHARED.replace("num_output: 3 }", "num_output: 4 }")
    with pytest.raises(SurgeryError, match=r"'c'.*4×3.*shares the parameter 'w', which is 3×3"):
        convert(write(tmp_path, text))


def test_a_learning_rate_of_zero_freezes(tmp_path: Path) -> None:
    text = V2.replace("lr_mult: 2", "lr_mult: 0")
    model = convert(write(tmp_path, text))
    assert not marks(model.graph.initializers["conv.bias"]).trainable
    assert marks(model.graph.initializers["conv.weight"]).trainable


def test_several_inputs_share_the_batch_where_it_is_the_same(tmp_path: Path) -> None:
    text = """input: "data" input: "mask" input: "rois"
              input_shape { dim: 2 dim: 3 } input_shape { dim: 2 dim: 3 } input_shape { dim: 7 dim: 3 }
              layer { name: "s" type: "Eltwise" bottom: "data" bottom: "mask" top: "s" }
              layer { name: "r" type: "ReLU" bottom: "rois" top: "r" }"""
    model = convert(write(tmp_path, text))
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3]", "[N,3]", "[N_rois,3]"]
    fixed = convert(write(tmp_path, text), batch=5)
    assert [str(i.shape) for i in fixed.graph.inputs] == ["[5,3]"] * 3


def test_free_sizes_of_two_inputs_are_their_own(tmp_path: Path) -> None:
    text = """input: "a" input: "b"
              input_shape { dim: 1 dim: 3 dim: 4 dim: 4 } input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }
              layer { name: "c" type: "Crop" bottom: "a" bottom: "b" top: "c" }"""
    model = convert(write(tmp_path, text), shape="a=3x?x?,b=3x?x?")
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3,height,width]", "[N,3,height_b,width_b]"]
    a = np.arange(75, dtype=np.float32).reshape(1, 3, 5, 5)
    np.testing.assert_array_equal(run(model, a, np.zeros((1, 3, 2, 4), np.float32))["c"], a[:, :, :2, :4])


def test_values_have_the_names_of_tops_and_of_layers_in_place(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "first" type: "AbsVal" bottom: "x" top: "y" }
              layer { name: "second" type: "ReLU" bottom: "y" top: "y" }
              layer { name: "side" type: "Power" bottom: "y" top: "z" power_param { scale: 2 } }
              layer { name: "third" type: "Sigmoid" bottom: "y" top: "y" }
              layer { name: "own" type: "BNLL" bottom: "x" top: "x" }"""
    model = convert(write(tmp_path, text))
    assert {str(n.name): n.outputs[0].name for n in model.graph} == {
        "first": "y/first",
        "second": "y/second",
        "side": "z",
        "third": "y",
        "own": "x_2",
    }
    x = np.array([[-1, 0.5, 2]], np.float32)
    found = run(model, x)
    np.testing.assert_allclose(found["z"], 2 * np.abs(x))
    np.testing.assert_allclose(found["y"], 1 / (1 + np.exp(-np.abs(x))), rtol=1e-6)
    np.testing.assert_allclose(found["x_2"], np.log1p(np.exp(x)), rtol=1e-6)


def test_an_output_may_be_another_name_of_an_input(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "s" type: "Split" bottom: "x" top: "a" top: "b" }"""
    x = np.array([[1, 2, 3]], np.float32)
    found = run(convert(write(tmp_path, text)), x)
    np.testing.assert_array_equal(found["a"], x)
    np.testing.assert_array_equal(found["b"], x)


def filler(text: str) -> caffe_pb2.FillerParameter:
    return text_format.Parse(text, caffe_pb2.FillerParameter())


def test_fillers_have_caffes_distributions() -> None:
    shape = (200, 30, 5, 5)
    fan_in, fan_out = 30 * 25, 200 * 25
    values = {text: fill(filler(text), shape, 0, "w") for text in (
        'type: "xavier"', 'type: "xavier" variance_norm: FAN_OUT', 'type: "xavier" variance_norm: AVERAGE',
        'type: "msra"', 'type: "gaussian" mean: 1 std: 0.2', 'type: "uniform" min: -2 max: 3',
        'type: "gaussian" std: 1 sparse: 20', 'type: "positive_unitball"', "value: 0.25",
    )}  # fmt: skip
    x = values['type: "xavier"']
    assert abs(x).max() <= np.sqrt(3 / fan_in)
    np.testing.assert_allclose(x.std(), np.sqrt(1 / fan_in), rtol=0.01)
    np.testing.assert_allclose(values['type: "xavier" variance_norm: FAN_OUT'].std(), np.sqrt(1 / fan_out), rtol=0.01)
    average = values['type: "xavier" variance_norm: AVERAGE'].std()
    np.testing.assert_allclose(average, np.sqrt(2 / (fan_in + fan_out)), rtol=0.01)
    np.testing.assert_allclose(values['type: "msra"'].std(), np.sqrt(2 / fan_in), rtol=0.02)
    gaussian = values['type: "gaussian" mean: 1 std: 0.2']
    np.testing.assert_allclose([gaussian.mean(), gaussian.std()], [1, 0.2], rtol=0.02)
    uniform = values['type: "uniform" min: -2 max: 3']
    np.testing.assert_allclose([uniform.min(), uniform.max(), uniform.mean()], [-2, 3, 0.5], atol=0.02)
    np.testing.assert_allclose((values['type: "gaussian" std: 1 sparse: 20'] != 0).mean(), 20 / 200, rtol=0.05)
    ball = values['type: "positive_unitball"']
    np.testing.assert_allclose(ball.sum((1, 2, 3)), 1, rtol=1e-5)
    assert ball.min() >= 0
    assert (values["value: 0.25"] == 0.25).all()


def test_bilinear_filler_interpolates(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }
              layer { name: "up" type: "Deconvolution" bottom: "x" top: "up"
                      convolution_param { num_output: 1 kernel_size: 4 stride: 2 pad: 1 bias_term: false
                                          weight_filler { type: "bilinear" } } }"""
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    up = run(convert(write(tmp_path, text)), x)["up"][0, 0]
    # Inside, a ramp stays a ramp: half a pixel's step of 1 across and of 4 down.
    np.testing.assert_allclose(np.diff(up[2:6, 2:6], axis=1), 0.5)
    np.testing.assert_allclose(np.diff(up[2:6, 2:6], axis=0), 2.0)


def test_a_net_without_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(write(tmp_path, V2))
    assert "no weights lie next to it" in caplog.text


def test_fillers_go_by_the_seed_and_the_layer(tmp_path: Path) -> None:
    path = write(tmp_path, V2)
    first, again, other = (array(convert(path, seed=s), "conv.weight") for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    shorter = write(tmp_path, V2[: V2.index('layer { name: "ip"')], "short.prototxt")
    np.testing.assert_array_equal(array(convert(shorter, seed=1), "conv.weight"), first)


def test_new_layers_start_from_their_fillers_with_a_warning(
    lenet_files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = lenet_files[0].read_text().replace('name: "ip2"', 'name: "new"')
    model = convert(write(tmp_path, text), weights=lenet_files[1])
    assert "has no weights for new" in caplog.text
    np.testing.assert_array_equal(array(model, "conv1.weight"), array(convert(lenet_files[0]), "conv1.weight"))
    assert array(model, "new.weight").std() > 0


def test_partners_are_found(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    definition, weights = lenet_files
    expected = array(convert(definition), "conv1.weight")
    for names in (
        ("a.prototxt", "a.caffemodel"),
        ("a_deploy.prototxt", "a.caffemodel"),
        ("deploy.prototxt", "x.caffemodel"),
    ):
        folder = tmp_path / names[0]
        folder.mkdir()
        shutil.copy(definition, folder / names[0])
        shutil.copy(weights, folder / names[1])
        write(folder, "base_lr: 1", "solver.prototxt")
        write(folder, V2, "train_val.prototxt")
        for source in (folder, folder / names[0], folder / names[1]):
            np.testing.assert_array_equal(array(convert(source), "conv1.weight"), expected)


def test_other_networks_weights_are_not_taken(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(lenet_files[1], tmp_path / f"{name}.caffemodel")
    shutil.copy(lenet_files[0], tmp_path / "c.prototxt")
    model = convert(tmp_path / "c.prototxt")
    assert (array(model, "conv1.weight") != array(convert(lenet_files[0]), "conv1.weight")).any()


def test_hdf5_weights(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    model = convert(lenet_files[0])
    definition = shutil.copy(lenet_files[0], tmp_path / "net.prototxt")
    with h5py.File(tmp_path / "net.caffemodel.h5", "w") as file:
        for layer in ("conv1", "conv2", "ip1", "ip2"):
            for index, role in enumerate(("weight", "bias")):
                file[f"data/{layer}/{index}"] = array(model, f"{layer}.{role}")
        file.create_group("data/pool1")
    for source in (definition, tmp_path):
        np.testing.assert_array_equal(array(convert(source), "ip2.weight"), array(model, "ip2.weight"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones((20, 1, 5, 5))
    with h5py.File(tmp_path / "net.caffemodel.h5", "a") as file:
        del file["data/conv1/0"]
        file["data/conv1/0"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(SurgeryError, match="of its own"):
        convert(definition)


CUSTOM = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
            layer { name: "odd" type: "TimesAll" bottom: "x" top: "odd"
                    times_param { factor: 3.5 more { factor: 2 } } }"""


def times_all(c: Context) -> ir.Value:
    """A layer type for the tests."""
    param = c.fields["times_param"]
    return c.op.Mul(c.x, param["factor"] * param["more"]["factor"])


def test_custom_layers(tmp_path: Path) -> None:
    path = write(tmp_path, CUSTOM)
    x = np.array([[1, 2, 3]], np.float32)
    for custom in (times_all, f"{__name__}:times_all"):
        model = convert(path, custom=custom)
        np.testing.assert_allclose(run(model, x)["odd"], 7 * x)
        assert [n.name for n in model.graph] == ["odd"]
    with pytest.raises(SurgeryError, match=r"net\.prototxt.*3:21.*times_param"):
        convert(path)
    with pytest.raises(SurgeryError, match=r"'odd' \(TimesAll\).*--custom"):
        convert(write(tmp_path, CUSTOM[: CUSTOM.index("times_param")] + "}"))
    with pytest.raises(SurgeryError, match=r"field 'input_param\.size'"):
        convert(write(tmp_path, CUSTOM.replace("shape {", "size: 2 shape {", 1)), custom=times_all)
    with pytest.raises(SurgeryError, match="returned nothing"):
        convert(write(tmp_path, CUSTOM), custom=lambda c: None)


def test_a_forks_data_layer_may_have_fields_of_its_own(tmp_path: Path) -> None:
    text = """layer { name: "d" type: "AnnotatedData" top: "data" top: "label" annotated_data_param { batch: 3 }
                      transform_param { crop_size: 4 resize_param { height: 9 } } }
              layer { name: "odd" type: "Odd" bottom: "data" bottom: "label" top: "odd" }"""
    model = convert(write(tmp_path, text), custom=lambda c: c.op.Abs(c.x))
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3,4,4]"]
    assert [o.name for o in model.graph.outputs] == ["odd"]


def test_custom_modules_lie_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers_of_mine.py").write_text("def convert(c):\n    return c.op.Neg(c.x)\n")
    (tmp_path / "broken_layers_of_mine.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    model = convert(write(tmp_path, CUSTOM), custom="layers_of_mine:convert")
    assert [n.op_type for n in model.graph] == ["Neg"]
    with pytest.raises(SurgeryError, match="cannot be imported"):
        convert(tmp_path / "net.prototxt", custom="broken_layers_of_mine:convert")


@pytest.mark.parametrize(("custom", "message"), [
    ("nonsense", "module:function"),
    ("no_such_module_here:f", "cannot be imported"),
    ("math:no_such_function", "has no"),
    ("math:pi", "not a function"),
])  # fmt: skip
def test_custom_that_is_none(tmp_path: Path, custom: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        convert(write(tmp_path, CUSTOM), custom=custom)


def test_what_a_loss_makes_can_be_silenced_but_not_used(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "loss" }
              layer { name: "quiet" type: "Silence" bottom: "loss" }"""
    assert [o.name for o in convert(write(tmp_path, text)).graph.outputs] == ["prob"]
    with pytest.raises(SurgeryError, match="'loss' is a loss or a measure"):
        convert(write(tmp_path, text.replace("Silence", "AbsVal")))


def test_two_layers_may_have_one_name(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "a" type: "ReLU" bottom: "x" top: "y" }
              layer { name: "a" type: "InnerProduct" bottom: "y" top: "z"
                      inner_product_param { num_output: 2 axis: 0 } }
              layer { name: "a" type: "InnerProduct" bottom: "y" top: "u"
                      inner_product_param { num_output: 2 axis: 0 } }"""
    model = convert(write(tmp_path, text), batch=1)
    names = [str(n.name) for n in model.graph]
    assert {"a", "a_2", "a_3"} <= set(names)
    assert len(set(names)) == len(names)
    assert set(model.graph.initializers) > {"a.weight", "a.weight_2"}


def test_write_net_is_read(tmp_path: Path) -> None:
    definition, weights = write_net(tmp_path, "", {"x": (1, 2)})
    assert weights is None
    with pytest.raises(SurgeryError, match="no output"):
        convert(definition)
