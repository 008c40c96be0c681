"""TensorFlow networks for tests: VGG-16, Inception v3 and a ResNet, narrow, as TF-Slim names and builds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

__all__ = ["NETS", "save"]

v1 = tf.compat.v1
Tensor = tf.Tensor


def variable(name: str, shape: Sequence[int], low: float, high: float, trainable: bool = True) -> Tensor:
    return v1.get_variable(name, shape, initializer=v1.random_uniform_initializer(low, high), trainable=trainable)


def normalize(x: Tensor, kind: str) -> Tensor:
    """Batch normalization: TensorFlow's fused operator, or written out as `tf.nn.batch_normalization` does."""
    size = [int(x.shape[-1])]
    with v1.variable_scope("BatchNorm"):
        gamma, beta = variable("gamma", size, 0.5, 1.5), variable("beta", size, -1, 1)
        mean = variable("moving_mean", size, -0.2, 0.2, trainable=False)
        variance = variable("moving_variance", size, 0.2, 1, trainable=False)
        if kind == "fused":
            return v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, 0.001, is_training=False)[0]
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 0.001)


def conv(
    x: Tensor, name: str, units: int, kernel: Sequence[int], stride: int = 1, norm: str = "", padding: str = "SAME",
    active: bool = True,
) -> Tensor:  # fmt: skip
    with v1.variable_scope(name):
        shape = [*kernel, int(x.shape[3]), units]
        limit = (6 / np.prod(shape[:3])) ** 0.5
        x = tf.nn.conv2d(x, variable("weights", shape, -limit, limit), stride, padding)
        if norm:
            x = normalize(x, norm)
        else:
            x = tf.nn.bias_add(x, v1.get_variable("biases", [units], initializer=v1.zeros_initializer()))
        return tf.nn.relu(x) if active else x


def dense(x: Tensor, name: str, units: int) -> Tensor:
    with v1.variable_scope(name):
        limit = (6 / int(x.shape[1])) ** 0.5
        x = tf.matmul(x, variable("weights", [int(x.shape[1]), units], -limit, limit))
        return tf.nn.bias_add(x, variable("biases", [units], -0.1, 0.1))


def vgg_16(x: Tensor, keep: Tensor) -> Tensor:
    for block, (count, units) in enumerate(((2, 4), (2, 6), (3, 8), (3, 8), (3, 8)), 1):
        for number in range(1, count + 1):
            x = conv(x, f"vgg_16/conv{block}/conv{block}_{number}", units, (3, 3))
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    x = conv(x, "vgg_16/fc6", 16, (7, 7), padding="VALID")
    x = v1.nn.dropout(x, keep_prob=keep)
    x = conv(x, "vgg_16/fc7", 16, (1, 1))
    x = v1.nn.dropout(x, keep_prob=keep)
    x = conv(x, "vgg_16/fc8", 5, (1, 1), active=False)
    return tf.squeeze(x, [1, 2])


def inception_v3(x: Tensor, keep: Tensor) -> Tensor:
    """A block of each kind."""

    def unit(x: Tensor, name: str, units: int, kernel: Sequence[int], stride: int = 1, padding: str = "SAME") -> Tensor:
        return conv(x, f"InceptionV3/{name}", units, kernel, stride, "fused", padding)

    x = unit(x, "Conv2d_1a_3x3", 4, (3, 3), 2, "VALID")
    x = unit(x, "Conv2d_2b_3x3", 6, (3, 3))
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    a = unit(x, "Mixed_5b/Branch_0/Conv2d_0a_1x1", 4, (1, 1))
    b = unit(unit(x, "Mixed_5b/Branch_1/Conv2d_0a_1x1", 4, (1, 1)), "Mixed_5b/Branch_1/Conv2d_0b_5x5", 4, (5, 5))
    c = unit(tf.nn.avg_pool2d(x, 3, 1, "SAME"), "Mixed_5b/Branch_3/Conv2d_0b_1x1", 4, (1, 1))
    x = tf.concat([a, b, c], 3)
    a = unit(x, "Mixed_6a/Branch_0/Conv2d_1a_1x1", 6, (3, 3), 2, "VALID")
    x = tf.concat([a, tf.nn.max_pool2d(x, 3, 2, "VALID")], 3)
    a = unit(unit(x, "Mixed_6b/Branch_1/Conv2d_0b_1x7", 6, (1, 7)), "Mixed_6b/Branch_1/Conv2d_0c_7x1", 6, (7, 1))
    b = unit(x, "Mixed_7c/Branch_1/Conv2d_0b_1x3", 4, (1, 3))
    x = tf.concat([a, b, unit(x, "Mixed_7c/Branch_1/Conv2d_0c_3x1", 4, (3, 1))], 3)
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    x = v1.nn.dropout(x, keep_prob=keep)
    x = conv(x, "InceptionV3/Logits/Conv2d_1c_1x1", 5, (1, 1), active=False)
    return tf.squeeze(x, [1, 2])


def resnet(x: Tensor, keep: Tensor) -> Tensor:
    """With strides in SAME padding, and batch normalization in both its ways, of images and of vectors."""
    x = conv(x, "resnet/conv1", 6, (7, 7), 2, "fused")
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for block, (units, stride) in enumerate(((6, 1), (10, 2)), 1):
        shortcut = x if stride == 1 else conv(x, f"resnet/block{block}/shortcut", units, (1, 1), stride, active=False)
        y = conv(x, f"resnet/block{block}/conv1", units, (3, 3), stride, "plain")
        y = conv(y, f"resnet/block{block}/conv2", units, (3, 3), 1, "fused", active=False)
        x = tf.nn.relu(shortcut + y)
    x = tf.reduce_mean(tf.nn.avg_pool2d(x, 3, 2, "SAME"), [1, 2])
    with v1.variable_scope("resnet/postnorm"):
        x = normalize(x, "plain")
    x = x / keep * tf.floor(keep + tf.random.uniform(tf.shape(x)))  # dropout as TensorFlow 1.0 wrote it
    return dense(x, "resnet/logits", 5)


NETS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[int | None]]] = {
    "vgg_16": (vgg_16, [None, 224, 224, 3]),
    "inception_v3": (inception_v3, [None, 75, 75, 3]),
    "resnet": (resnet, [None, None, None, 3]),
}


def save(name: str, folder: Path, x: np.ndarray) -> np.ndarray:
    """Saves a network as ``frozen.pb``, as a checkpoint ``model.meta`` with a training graph, and as a SavedModel.

    Returns:
        Its output for `x`.
    """
    build, shape = NETS[name]
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        images = v1.placeholder(tf.float32, shape, name="images")
        keep = v1.placeholder(tf.float32, [], name="keep_prob")
        output = tf.nn.softmax(build(images, keep), name="probabilities")
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), ["probabilities"])
        (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
        ends = {"images": images}, {"probabilities": output}
        signature = v1.saved_model.predict_signature_def(*ends)
        builder = v1.saved_model.Builder(str(folder / "saved_model"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
        truth = v1.placeholder(tf.int64, [None], name="labels")
        loss = tf.reduce_mean(-tf.math.log(tf.gather(output, truth, axis=1)))
        v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        v1.train.Saver(v1.global_variables()).save(session, str(folder / "model"))
        found: np.ndarray = session.run(output, {images: x, keep: 1.0})
        return found
