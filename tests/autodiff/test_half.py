"""Gradients in float16: every constant that a rule writes has the type that the model has.

The CPU runtimes compute most of it in float32 and round; so the gradients in float32, of inputs that float16 holds
exactly, are what to expect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surgery import runtime
from tests.autodiff.checks import Operator, gradients, spread

pytestmark = pytest.mark.training

ACTIVATIONS = (
    "Relu LeakyRelu ThresholdedRelu Elu Selu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Mish Erf Gelu "
    "Softmax LogSoftmax"
)
# operator, shapes of its inputs, attributes and whatever else an Operator takes
OPERATORS: list[tuple[str, list[tuple[int, ...]], dict[str, Any], dict[str, Any]]] = [
    ("Conv", [(2, 3, 7, 7), (4, 3, 3, 3), (4,)], {"pads": [1, 1, 1, 1]}, {}),
    ("Conv", [(2, 16, 7, 7), (4, 16, 3, 3)], {"strides": [2, 2]}, {}),
    ("Conv", [(2, 4, 7, 7), (4, 1, 3, 3)], {"group": 4}, {}),
    ("ConvTranspose", [(2, 3, 5, 5), (3, 4, 3, 3), (4,)], {"strides": [2, 2]}, {}),
    ("MaxPool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
    ("MaxPool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2]}, {}),
    ("AveragePool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
    ("AveragePool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    ("LpPool", [(1, 2, 6, 6)], {"kernel_shape": [2, 2]}, {}),
    ("GlobalAveragePool", [(2, 3, 4, 4)], {}, {}),
    ("GlobalMaxPool", [(2, 3, 4, 4)], {}, {}),
    ("BatchNormalization", [(2, 3, 4, 4), (3,), (3,), (3,), (3,)], {}, {"wrt": [0, 1, 2]}),
    (
        "BatchNormalization",
        [(2, 3, 4, 4), (3,), (3,), (3,), (3,)],
        {"training_mode": 1},
        {"outputs": 3, "through": [0], "wrt": [0, 1, 2]},
    ),
    ("LayerNormalization", [(2, 3, 4), (4,), (4,)], {}, {}),
    ("InstanceNormalization", [(2, 3, 4), (3,), (3,)], {}, {}),
    ("GroupNormalization", [(2, 6, 4), (6,), (6,)], {"num_groups": 3}, {"opset": 21}),
    ("LRN", [(2, 6, 4, 4)], {"size": 3}, {}),
    ("LpNormalization", [(2, 3)], {}, {}),
    ("DepthToSpace", [(1, 4, 2, 2)], {"blocksize": 2}, {}),
    ("PRelu", [(3, 4), (4,)], {}, {}),
    ("Clip", [(3, 4), (), ()], {}, {}),  # both bounds: ONNX Runtime 1.19 clips to 0 where float16 has one
    *[(name, [(3, 4)], {}, {"opset": 20}) for name in ACTIVATIONS.split()],
]


@pytest.mark.parametrize(("op_type", "shapes", "attributes", "others"), OPERATORS, ids=lambda v: str(v))
def test_half_precision(
    rng: np.random.Generator,
    op_type: str,
    shapes: list[tuple[int, ...]],
    attributes: dict[str, Any],
    others: dict[str, Any],
) -> None:
    inputs = [spread(rng, *shape).astype(np.float16).astype(np.float32) for shape in shapes]
    if op_type == "BatchNormalization":
        inputs[4] = np.abs(inputs[4]) + 0.5
    if op_type == "Clip":
        inputs[1:] = np.array(-0.1875, np.float32), np.array(0.1875, np.float32)
    operator = Operator(op_type, inputs, attributes, **others)
    session = runtime.session(operator.model(np.float32), ["CPUExecutionProvider"])
    dy = rng.standard_normal(session.run(None, operator.feeds(np.float32))[0].shape).astype(np.float16)
    expected = gradients(operator, {0: dy})
    found = gradients(operator, {0: dy}, dtype=np.float16)
    for index, gradient in found.items():
        assert gradient.dtype == np.float16
        scale = max(np.abs(expected[index]).max(), 0.1)
        np.testing.assert_allclose(gradient, expected[index], atol=0.01 * scale, rtol=0.01, err_msg=str(index))
