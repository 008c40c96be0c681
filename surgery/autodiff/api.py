"""Gradients as a model: from an ONNX model, an ordinary ONNX model that also computes gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.autodiff.backward import backward
from surgery.autodiff.missing import why_no_gradient
from surgery.autodiff.prepare import prepare
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest
from surgery.io import IR_VERSION

__all__ = ["gradient"]


def gradient(
    model: ir.Model,
    *,
    of: str,
    wrt: Sequence[str],
    weight: npt.ArrayLike | None = None,
    fused: bool = False,
) -> ir.Model:
    """Returns a model that computes, beside the outputs of `model`, the gradient of a value.

    The result is an ordinary ONNX model in standard operators. Where `of` is a single number, its outputs
    ``gradient/<name>`` are ∂of/∂name. Where `of` is a tensor, they are the gradient of its elements' sum, each times
    its weight: a one-hot weight chooses a class (saliency maps), a weight of 1 sums, and `of`'s own value as its weight
    gives the gradient of half its squared norm (DeepDream).

        surgery.gradient(model, of="scores", wrt=["image"])         # one more input: scores/weight
        surgery.gradient(model, of="conv5", wrt=["image"], weight=1.0)
        surgery.gradient(model, of="loss", wrt=["fc.weight", "fc.bias"])

    Args:
        model: A model; it is left as it is.
        of: What to differentiate: the name of any value of the graph.
        wrt: What to differentiate by: the names of inputs, initializers or values in between.
        weight: Of each element of `of`, broadcast to its shape; without it, a tensor `of` makes an input
            ``<of>/weight``, of the shape of `of`.
        fused: Use the kernels of the onnxruntime-training build; the model then runs on it only.

    Raises:
        SurgeryError: A name is unknown, an operator on the way has no rule, or `of` has no gradient by one of `wrt`.
    """
    model = model.clone()
    graph = model.graph
    target, *sources = _find(graph, [of, *wrt])
    prepare(model, sources, [target])
    target, *sources = _find(graph, [of, *wrt])  # other values may have their names now
    op = Emitter(graph, "gradient/")
    gradients = backward(graph, {target: _seed(op, target, weight)}, sources, fused=fused, emitter=op)
    for source in sources:
        if source not in gradients:
            raise SurgeryError(why_no_gradient(source, [target]))
        output = op.Identity(gradients[source], _name=op.fresh("output"))
        output.name, output.shape, output.dtype = f"gradient/{source.name}", source.shape, source.dtype
        graph.outputs.append(output)
    model.ir_version = IR_VERSION
    RemoveUnusedNodesPass()(model)
    return model


def _find(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    values = {str(v.name): v for v in graph.inputs} | dict(graph.initializers)
    values |= {str(o.name): o for node in graph for o in node.outputs if o.name}
    for name in names:
        if name not in values:
            raise SurgeryError(f"the model has no value named {name!r}{nearest(name, values)}")
    return [values[name] for name in names]


def _seed(op: Emitter, target: ir.Value, weight: npt.ArrayLike | None) -> ir.Value:
    """The gradient of the target by itself."""
    dtype = target.dtype or ir.DataType.FLOAT
    if not dtype.is_floating_point():
        raise SurgeryError(f"{target.name!r} cannot be differentiated: it is of type {dtype}, not of floats")
    if weight is None and target.shape is not None and not len(target.shape):
        weight = 1.0
    if weight is None:
        value = ir.val(f"{target.name}/weight", dtype, target.shape)
        op.graph.inputs.append(value)
        return value
    array = np.asarray(weight, dtype.numpy())
    if target.shape is None or array.ndim > len(target.shape):
        raise SurgeryError(
            f"a weight of shape {list(array.shape)} does not fit {target.name!r} of shape {target.shape}"
        )
    return op.Expand(op.constant(array), op.Shape(target))
