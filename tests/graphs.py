"""Small graphs in ONNX's text format, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from surgery.runtime import session

__all__ = ["CNN", "CNN_WEIGHTS", "cnn", "mlp", "parse", "run", "squeezenet", "weights_of"]

CNN = """c1 = Conv(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
    c2 = Conv(p1, w2) n2 = BatchNormalization(c2, s, b, m, v) r2 = Relu(n2)
    g = GlobalAveragePool(r2) f = Flatten(g) h = MatMul(f, w3) y = Add(h, b3)"""
CNN_WEIGHTS = {
    "w1": [4, 3, 3, 3],
    "b1": [4],
    "w2": [5, 4, 3, 3],
    "s": [5],
    "b": [5],
    "m": [5],
    "v": [5],
    "w3": [5, 6],
    "b3": [6],
}


def parse(signature: str, body: str, weights: Mapping[str, Sequence[int]], opset: int = 17, seed: int = 0) -> ir.Model:
    """A model with operators named like their outputs, random weights (from 0.1 to 1), and inferred shapes.

    The text format has no dots in names; ``fc__weight`` there is ``fc.weight`` in `weights` and in the model.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{{body}}}')
    random = np.random.default_rng(seed)
    for name, dims in weights.items():
        array = random.uniform(0.1, 1, dims).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
        node.input[:] = [name.replace("__", ".") for name in node.input]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def cnn() -> ir.Model:
    """Two convolutions, one with BatchNormalization, global pooling, and a MatMul with its Add as the head ``h``."""
    return parse("(float[N,3,10,10] x) => (float[N,6] y)", CNN, CNN_WEIGHTS)


def mlp(opset: int = 17) -> ir.Model:
    """Two Gemm layers, ``a`` (transB) and the head ``b``, with Relu and Softmax."""
    return parse(
        "(float[N,8] x) => (float[N,4] y)",
        "a = Gemm<transB = 1>(x, a__weight, a__bias) r = Relu(a) "
        "b = Gemm<transB = 1>(r, b__weight, b__bias) y = Softmax(b)",
        {"a.weight": [6, 8], "a.bias": [6], "b.weight": [4, 6], "b.bias": [4]},
        opset,
    )


def squeezenet(ending: str = "y = Flatten(g)", shape: str = "N,10", opset: int = 17) -> ir.Model:
    """A head that is a Conv in front of global pooling."""
    return parse(
        f"(float[N,3,9,9] x) => (float[{shape}] y)",
        "c1 = Conv(x, w1, b1) r1 = Relu(c1) c10 = Conv(r1, w2, b2) r10 = Relu(c10) "
        f"g = GlobalAveragePool(r10) {ending}",
        {"w1": [7, 3, 3, 3], "b1": [7], "w2": [10, 7, 1, 1], "b2": [10]},
        opset,
    )


def run(model: ir.Model, *inputs: np.ndarray, checked: bool = True) -> list[np.ndarray]:
    """The outputs of `model` on the CPU; the model is checked first."""
    proto = ir.to_proto(model)
    if checked:
        onnx.checker.check_model(proto, full_check=True)
    feeds = {str(value.name): array for value, array in zip(model.graph.inputs, inputs, strict=True)}
    return session(model, ["CPUExecutionProvider"], threads=1).run(None, feeds)


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    """All initializers by name."""
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}
