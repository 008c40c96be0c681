"""Flatten without a Transpose before it, by putting the weights that read it in the other order.

Keras flattens [N, H, W, C]; the graph has [N, C, H, W]. Where nothing but functions of single numbers lies between the
Flatten and a Gemm, that one's rows can be put in the order of the graph once, in place of every image's numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["flatten_in_place"]

_SINGLE = ("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Clip", "Dropout")


def flatten_in_place(model: ir.Model) -> None:
    """Takes out each Transpose in front of a Flatten that only one Gemm reads, and turns that one's weight."""
    for node in list(model.graph):
        if node.op_type != "Gemm" or node.attributes.get_int("transB", False):
            continue
        weight, flatten = node.inputs[1], _source(node.inputs[0])
        if flatten is None or weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
            continue
        transpose = flatten.inputs[0].producer() if flatten.inputs[0] is not None else None
        if transpose is None or transpose.op_type != "Transpose" or len(transpose.outputs[0].uses()) != 1:
            continue
        image, dims = transpose.inputs[0], transpose.outputs[0].shape
        perm, rank = list(transpose.attributes.get_ints("perm", ())), len(dims or ())
        sizes = [d for d in list(dims or ())[1:] if isinstance(d, int)]
        if image is None or len(sizes) != rank - 1 or perm != [0, *range(2, rank), 1] or rank < 3:
            continue
        _turn(weight, sizes)
        flatten.replace_input_with(0, image)
        model.graph.remove(transpose, safe=True)


def _source(value: ir.Value | None) -> ir.Node | None:
    """The Flatten behind functions of single numbers, each read by one operator only."""
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type == "Flatten":
            return node
        if node.op_type not in _SINGLE:
            return None
        value = node.inputs[0]
    return None


def _turn(weight: ir.Value, sizes: list[int]) -> None:
    assert weight.const_value is not None
    array = weight.const_value.numpy()
    turned = np.moveaxis(array.reshape(*sizes, array.shape[1]), len(sizes) - 1, 0)
    weight.const_value = ir.tensor(np.ascontiguousarray(turned.reshape(array.shape)), name=weight.name)
