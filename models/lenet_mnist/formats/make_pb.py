"""Writes the LeNet of the folder above as a frozen TensorFlow graph: lenet.pb. Needs TensorFlow.

    python models/lenet_mnist/formats/make_pb.py

Images are [N, 28, 28, 1] in it, as is usual there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from converters import convert  # noqa: E402

v1 = tf.compat.v1


def network(weights: dict[str, np.ndarray]) -> tf.compat.v1.GraphDef:
    """LeNet, its layers' scopes named as its Caffe layers."""

    def parameters(name: str, weight: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.constant(weight, name="weights"), tf.constant(weights[f"{name}.bias"], name="biases")

    def convolution(x: tf.Tensor, name: str) -> tf.Tensor:
        with v1.name_scope(name):
            weight, bias = parameters(name, weights[f"{name}.weight"].transpose(2, 3, 1, 0))
            return tf.nn.bias_add(tf.nn.conv2d(x, weight, 1, "VALID"), bias)

    def dense(x: tf.Tensor, name: str, weight: np.ndarray) -> tf.Tensor:
        with v1.name_scope(name):
            weight, bias = parameters(name, weight)
            return tf.nn.bias_add(tf.matmul(x, weight), bias)

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 28, 28, 1], name="images")
        y = tf.nn.max_pool2d(convolution(x, "conv1"), 2, 2, "VALID", name="pool1")
        y = tf.nn.max_pool2d(convolution(y, "conv2"), 2, 2, "VALID", name="pool2")
        y = tf.reshape(y, [-1, 800], name="flatten")
        flat = weights["ip1.weight"].reshape(500, 50, 4, 4).transpose(2, 3, 1, 0)  # rows, columns, channels → units
        y = tf.nn.relu(dense(y, "ip1", flat.reshape(800, 500)), name="relu1")
        y = v1.nn.dropout(y, rate=0.5, name="drop1")
        tf.nn.softmax(dense(y, "ip2", weights["ip2.weight"].T), name="prob")
        return graph.as_graph_def()


def main() -> None:
    """Takes the weights from the caffemodel."""
    initializers = convert(HERE.parent / "lenet_mnist.prototxt").graph.initializers
    weights = {name: value.const_value.numpy() for name, value in initializers.items() if value.const_value is not None}
    (HERE / "lenet.pb").write_bytes(network(weights).SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
