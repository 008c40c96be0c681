"""3×3 convolutions by minimal filtering along the height: half the multiplications, forward and backward.

F(4, 3) of Lavin and Gray 2015 (Fast Algorithms for Convolutional Neural Networks, section 4.3) in one dimension: four
rows of the output from six of the input take 6 products in place of 12, Y = Aᵀ[(G g) ⊙ (Bᵀ d)]. The width is left to an
ordinary convolution by 1×3, in a group for each of the six. It is all linear operators, so the gradient by the ordinary
rules takes half of the multiplications, too, and the weight stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter

__all__ = ["minimize_convolutions"]

_ROWS = 4  # of the output, from `_ROWS` + 2 of the input
_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / np.float32(24)
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)
_POINTS = len(_G)
# What the products save grows with both numbers of channels multiplied, what the transforms cost with their sum.
_WORTH = 24


def minimize_convolutions(op: Emitter, trained: Iterable[ir.Value]) -> bool:
    """Rewrites the convolutions of a graph that gain by it, in place.

    Those by 3×3 with stride 1 and many channels do, where the weight is trained: that of a frozen one is better left to
    the runtime, which packs it once.

    Args:
        op: What to write with. The graph is sorted afterwards; shapes must be inferred before and after.
        trained: The parameters that are trained.

    Returns:
        Whether there were any.
    """
    weights = set(trained)
    chosen = [node for node in op.graph if node.op_type == "Conv" and node.inputs[1] in weights and _gains(node)]
    for node in chosen:
        old, new = node.outputs[0], _emit(op, node)
        new.shape, new.type, new.name, old.name = old.shape, old.type, old.name, None
        if old.is_graph_output():
            op.graph.outputs[list(op.graph.outputs).index(old)] = new
        old.replace_all_uses_with(new)
        op.graph.remove(node, safe=True)
    op.graph.sort()
    return bool(chosen)


def _gains(node: ir.Node) -> bool:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    if node.domain or x.shape is None or len(x.shape) != 4 or weight.shape is None or x.dtype != ir.DataType.FLOAT:
        return False
    if not all(isinstance(d, int) for d in [*x.shape[1:], *weight.shape]):
        return False
    plain = {"strides": (1, 1), "dilations": (1, 1), "group": 1, "auto_pad": "NOTSET"}
    if any(node.attributes[n].value != v for n, v in plain.items() if n in node.attributes):
        return False
    filters, channels, *kernel = (int(d) for d in weight.shape.numpy())
    return kernel == [3, 3] and filters * channels >= _WORTH * (filters + channels) and min(_heights(node)) >= _ROWS


def _pads(node: ir.Node) -> list[int]:
    return [int(p) for p in node.attributes.get_ints("pads", (0, 0, 0, 0))]


def _heights(node: ir.Node) -> tuple[int, int]:
    """Those of the input and of the output."""
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    height, pads = int(x.shape[2]), _pads(node)  # type: ignore[arg-type]
    return height, height + pads[0] + pads[2] - 2


def _emit(op: Emitter, node: ir.Node) -> ir.Value:
    """Writes the convolution; `t` is the number of tiles of four rows."""
    x, weight, bias = [*node.inputs, None][:3]
    assert x is not None
    assert x.shape is not None
    assert weight is not None
    assert weight.shape is not None
    filters, channels = (int(d) for d in weight.shape.numpy()[:2])
    width, (height, rows) = int(x.shape[3]), _heights(node)  # type: ignore[arg-type]
    top, left, _, right = _pads(node)
    t = -(-rows // _ROWS)
    across = width + left + right - 2

    # [N, C, H, W] as the four rows of each tile and one tile more, [4, C, N, t + 1, W].
    below = _ROWS * (t + 1) - top - height
    padded = op.Pad(x, np.array([0, 0, top, 0, 0, 0, below, 0]))
    tiles = op.Transpose(op.Reshape(padded, np.array([0, channels, t + 1, _ROWS, width])), perm=[3, 1, 0, 2, 4])
    tiles = op.Reshape(tiles, np.array([1, _ROWS, -1, (t + 1) * width]))
    # Bᵀ d reads the four rows of a tile and two of the next.
    reach = np.zeros((_POINTS, _ROWS, 1, 2), np.float32)
    reach[:, :, 0, 0], reach[:, :2, 0, 1] = _B[:, :_ROWS], _B[:, _ROWS:]
    data = op.Conv(tiles, reach, kernel_shape=[1, 2], dilations=[1, width])
    data = op.Reshape(data, np.array([1, _POINTS * channels, -1, width]))
    by_row = op.Reshape(op.Transpose(weight, perm=[2, 0, 1, 3]), np.array([3, -1]))
    kernel = op.Reshape(op.MatMul(op.constant(_G), by_row), np.array([_POINTS * filters, channels, 1, 3]))
    inputs = [data, kernel]
    if bias is not None:  # Aᵀ gives the second of six to all four rows
        inputs.append(op.Pad(bias, np.array([filters, (_POINTS - 2) * filters])))
    products = op.Conv(*inputs, kernel_shape=[1, 3], pads=[0, left, 0, right], group=_POINTS)
    out = op.MatMul(op.constant(_A), op.Reshape(products, np.array([_POINTS, -1])))
    out = op.Transpose(op.Reshape(out, np.array([_ROWS, filters, -1, t, across])), perm=[2, 1, 3, 0, 4])
    out = op.Reshape(out, np.array([0, filters, t * _ROWS, across]))
    return out if t * _ROWS == rows else op.Slice(out, np.array([0]), np.array([rows]), np.array([2]))
