"""TensorFlow networks compute and train as ONNX models as they did, with TensorFlow itself as the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")

import surgery
from converters import convert
from converters.compare import compare
from converters.tensorflow.reference import run_tensorflow
from surgery.layers import layers
from surgery.marks import marks
from tests.converters import tensorflow_nets as nets
from tests.converters.caffe_checks import array, run

tf = nets.tf
FORMATS = Path(__file__).resolve().parents[2] / "models" / "lenet_mnist" / "formats"
RNG = np.random.default_rng(5)


def images(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


INPUTS = {"vgg_16": images(2, 224, 224, 3), "inception_v3": images(2, 75, 75, 3), "resnet": images(3, 45, 37, 3)}


Saved = Callable[[str], tuple[Path, np.ndarray]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Gives a network's folder and output."""

    @functools.cache
    def save(name: str) -> tuple[Path, np.ndarray]:
        folder = tmp_path_factory.mktemp(name)
        return folder, nets.save(name, folder, INPUTS[name])

    return save


SOURCES = ("frozen.pb", "model.meta", "saved_model")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", nets.NETS)
def test_networks_in_each_of_their_forms(saved: Saved, name: str, source: str) -> None:
    folder, expected = saved(name)
    model = convert(folder / source)
    assert [str(v.name) for v in model.graph.inputs] == ["images"]
    assert [str(v.name) for v in model.graph.outputs] == ["probabilities"]
    (found,) = run(model, INPUTS[name]).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not [node for node in model.graph if "auto_pad" in node.attributes]
    with tf.Graph().as_default():
        tf.compat.v1.train.import_meta_graph(str(folder / "model.meta"))
        variables = {v.op.name for v in tf.compat.v1.global_variables()}
    assert variables <= set(model.graph.initializers)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("BatchNormalization") == sum(v.endswith("gamma") for v in variables)
    assert kinds.count("Dropout") == (2 if name == "vgg_16" else 1)


def test_a_checkpoint_of_a_network_that_trains(saved: Saved) -> None:
    """What is left is the network: the loss, its truth, the optimizer and the saver are not in the model."""
    folder, expected = saved("resnet")
    model = convert(folder / "model.meta", shape="45x37x3")
    (found,) = run(model, INPUTS["resnet"]).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    by_name = {layer.name: layer for layer in layers(model)}
    assert set(by_name["resnet/conv1"].parameters) == {"weight"}
    norm = by_name["resnet/postnorm/BatchNorm"]
    assert {p.name for p in norm.parameters.values()} == {
        f"resnet/postnorm/BatchNorm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    assert str(model.graph.inputs[0].shape) == "[N,45,37,3]"
    assert str(model.graph.outputs[0].shape) == "[N,5]"
    node = next(node for node in model.graph if node.op_type == "Dropout")
    assert node.inputs[1] is not None
    assert array(model, str(node.inputs[1].name)) == 0.5  # an input of the graph decides; the usual


@pytest.mark.training
def test_a_converted_network_trains(saved: Saved) -> None:
    model = convert(saved("resnet")[0] / "frozen.pb", shape="45x37x3")
    x, y = images(16, 45, 37, 3), np.arange(16) % 5
    trained = surgery.train(model, (x, y), epochs=2, batch_size=8, learning_rate=0.05, optimizer="sgd")
    for name in ("resnet/conv1/weights", "resnet/block1/conv1/BatchNorm/gamma", "resnet/logits/biases"):
        assert np.abs(array(trained.model, name) - array(model, name)).max() > 0
    assert np.isfinite(trained.history[-1]["loss"])


@pytest.mark.parametrize("shape", [(9, 7), (8, 12), (1, 1)])
@pytest.mark.parametrize("known", [True, False], ids=["known size", "any size"])
def test_same_padding_is_explicit(tmp_path: Path, shape: tuple[int, int], known: bool) -> None:
    """All windows with SAME padding, of sizes and strides that pad unevenly; also where sizes come at run time."""
    x = images(2, *shape, 4)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image = tf.compat.v1.placeholder(tf.float32, [None, None, None, 4], name="image")
        outputs = {
            "conv": tf.nn.conv2d(image, images(3, 2, 4, 5), [1, 2, 3, 1], "SAME"),
            "dilated": tf.nn.conv2d(image, images(3, 2, 4, 5), 1, "SAME", dilations=[1, 2, 2, 1]),
            "depthwise": tf.nn.depthwise_conv2d(image, images(3, 3, 4, 2), [1, 2, 2, 1], "SAME"),
            "max": tf.nn.max_pool2d(image, [3, 2], [2, 3], "SAME"),
            "average": tf.nn.avg_pool2d(image, [3, 4], [2, 3], "SAME"),
            "dense": tf.nn.avg_pool2d(image, 3, 1, "SAME"),
        }
        outputs = {name: tf.identity(value, f"out_{name}") for name, value in outputs.items()}
        expected = dict(zip(outputs, session.run(list(outputs.values()), {image: x}), strict=True))
        (tmp_path / "net.pb").write_bytes(session.graph.as_graph_def().SerializeToString())
    model = convert(tmp_path / "net.pb", shape=[*shape, 4] if known else None)
    assert not [node for node in model.graph if "auto_pad" in node.attributes]
    found = run(model, x)
    assert len(found) == len(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"out_{name}"], value, rtol=1e-4, atol=1e-5, err_msg=name)


class Twice(tf.Module):  # type: ignore[misc]
    """A module with two variables of one name, in functions that call each other, and a signature besides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = tf.Variable(images(3, 4), name="kernel")
        self.second = tf.Variable(np.zeros(4, np.float32), name="kernel")

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def __call__(self, x: Any) -> dict[str, Any]:
        return {"y": self.inner(x), "twice": 2 * self.inner(x)}

    @tf.function
    def inner(self, x: Any) -> Any:
        return x @ self.first + self.second

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="z")])
    def other(self, z: Any) -> dict[str, Any]:
        return {"only": z + self.second}


def test_saved_models_of_tensorflow_2(tmp_path: Path) -> None:
    module, x = Twice(), images(2, 3)
    signatures = {"serving_default": module.__call__, "other": module.other}
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    model = convert(tmp_path)
    found = run(model, x)
    for name, value in module(x).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert (
        len([v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size == 12])
        == 1
    )
    assert compare(tmp_path, model).equal
    other = convert(tmp_path, signature="other")
    assert list(run(other, images(2, 4))) == ["only"]
    assert str(other.graph.inputs[0].shape) == "[N,4]"
    assert all(marks(v).trainable for v in model.graph.initializers.values())


@pytest.mark.parametrize(("source", "options"), [
    ("fc-layers.pb", {}),
    ("lstm.pb", {}),
    ("regression/graphdef/frozen.pb", {"shape": "3"}),
    ("regression/checkpoint/model.meta", {"shape": "3"}),
    ("regression/checkpoint/model.index", {"shape": "3"}),
    ("regression/saved_model", {"shape": "3"}),
    ("regression/saved_model/saved_model.pb", {"shape": "3"}),
])  # fmt: skip
def test_networks_of_others(shared_data: Path, source: str, options: dict[str, Any]) -> None:
    path = shared_data / "tensorflow" / source
    model = convert(path, **options)
    found = compare(path, model, **options)
    assert found.framework == "TensorFlow"
    assert found.relative < 1e-5
    if "regression" in source:
        assert set(model.graph.initializers) == {"W", "b"}


def test_ends_may_be_given(shared_data: Path) -> None:
    path = shared_data / "tensorflow" / "fc-layers.pb"
    model = convert(path, inputs="X", outputs="model/dense/Relu:0,output")
    assert [o.name for o in model.graph.outputs] == ["model/dense/Relu", "output"]
    assert compare(path, model, inputs="X", outputs="model/dense/Relu:0,output").relative < 1e-5
    assert str(convert(path, batch=3).graph.inputs[0].shape) == "[3,784]"


def test_lenet_computes_as_its_caffe_network(lenet_files: tuple[Path, Path]) -> None:
    model = convert(FORMATS / "lenet.pb")
    x = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    (found,) = run(model, x.transpose(0, 2, 3, 1)).values()
    (expected,) = run(convert(lenet_files[0]), x).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    names = [layer.name for layer in layers(model)]
    assert [n for n in names if n in ("conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "drop1", "ip2", "prob")] == [
        "conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "drop1", "ip2", "prob"
    ]  # fmt: skip


@pytest.mark.parametrize("softmax", [True, False])
def test_an_accuracy_is_not_the_output(tmp_path: Path, softmax: bool) -> None:
    """As tutorials write it: the loss is of the logits, the accuracy of where they are largest."""
    v1, x = tf.compat.v1, images(2, 5, 5, 3)
    with tf.Graph().as_default(), v1.Session() as session:
        image, truth = v1.placeholder(tf.float32, [None, 5, 5, 3]), v1.placeholder(tf.int64, [None])
        logits = tf.matmul(tf.reshape(image, [-1, 75]), nets.variable("w", [75, 4], 0, 0.1), name="logits")
        output = tf.nn.softmax(logits, name="probabilities") if softmax else logits
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=truth, logits=logits))
        tf.reduce_mean(tf.cast(tf.equal(tf.argmax(output, 1), truth), tf.float32), name="accuracy")
        v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
        expected = session.run(output, {image: x})
    found = run(convert(tmp_path / "model.meta"), x)
    assert list(found) == ["probabilities" if softmax else "logits"]
    np.testing.assert_allclose(found.popitem()[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["in training", "at inference"])
def test_batch_normalization_of_a_graph_that_trains(tmp_path: Path, training: bool) -> None:
    """It normalizes by the batch there; the moving statistics, found by their names, are what inference has."""
    v1, x = tf.compat.v1, images(2, 5, 5, 3)
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 5, 5, 3], name="image")
        with v1.variable_scope("norm"):
            gamma, beta, mean, variance = (
                nets.variable(name, [3], 0.5, 1) for name in ("gamma", "beta", "moving_mean", "moving_variance")
            )
        statistics = {} if training else {"mean": mean, "variance": variance}
        out = v1.nn.fused_batch_norm(image, gamma, beta, is_training=training, **statistics)[0]
        tf.nn.relu(out, name="out")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
        expected = session.run(
            tf.nn.relu(tf.nn.batch_normalization(image, mean, variance, beta, gamma, 1e-3)), {image: x}
        )
    model = convert(tmp_path / "model.meta", outputs="out")
    np.testing.assert_allclose(run(model, x)["out"], expected, rtol=1e-4, atol=1e-5)


def test_sharing_is_by_variable_not_by_number(tmp_path: Path) -> None:
    """Two zero biases stay two parameters; a kernel that is used twice stays one."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        kernel = nets.variable("kernel", [4, 4], -1, 1)
        biases = [v1.get_variable(f"{name}/bias", [4], initializer=v1.zeros_initializer()) for name in "ab"]
        y = tf.nn.bias_add(tf.matmul(x, kernel), biases[0])
        tf.nn.bias_add(tf.matmul(tf.tanh(y), kernel), biases[1], name="y")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
    model = convert(tmp_path / "model.meta")
    assert set(model.graph.initializers) == {"kernel", "a/bias", "b/bias"}


@pytest.mark.slow
def test_mtcnn_finds_the_faces(shared_data: Path) -> None:
    """Loops that join what they find, branches for when that is nothing: tf2onnx 1.17 alone stops at it."""
    path = shared_data / "tensorflow" / "mtcnn.pb"
    model = convert(path)
    assert [str(v.shape) for v in model.graph.inputs] == ["[height,width,3]", "[]", "[3]", "[]"]
    settings = {"min_size": np.array(40), "thresholds": np.array([0.6, 0.7, 0.7]), "factor": np.array(0.709)}
    feed = {name: value.astype(np.float32) for name, value in settings.items()}
    for photograph, faces in (("faces1.jpg", 2), ("faces2.jpg", 1)):
        feed["input"] = cv2.imread(str(shared_data / "caffe" / "mtcnn" / photograph)).astype(np.float32)
        expected = run_tensorflow(path, feed)
        found = run(model, *(feed[str(v.name)] for v in model.graph.inputs))
        assert len(found["box"]) == faces
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-2)
    feed["input"] = np.zeros_like(feed["input"])
    nothing = run(model, *(feed[str(v.name)] for v in model.graph.inputs))
    assert [len(value) for value in nothing.values()] == [0, 0, 0]
