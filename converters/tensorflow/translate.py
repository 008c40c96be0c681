"""From a TensorFlow graph to an ONNX model: prepared, translated by tf2onnx, cleaned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.options import Dim
from converters.registry import load_extra
from converters.tensorflow.clean import clean
from converters.tensorflow.graph import DROPOUT, find_ends, freeze, inline, mask, prune, unmask
from converters.tensorflow.loops import HIDDEN, anchor_constants, carry_arrays
from converters.tensorflow.patterns import (
    restore_batch_normalization,
    restore_dropout,
    settle_batch_normalization,
    settle_switches,
)
from converters.tensorflow.source import VARIABLES, Source, read_source, tensorflow
from surgery.errors import SurgeryError
from surgery.quiet import quiet

__all__ = ["prepare", "translate"]

_MOST_COMPUTED = 2**26  # numbers; a weight is a constant, and some are computed on
_OPSET = 18  # the newest that tf2onnx 1.17 writes


def translate(
    path: Path,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    signature: str | None,
    shapes: Mapping[str, Sequence[Dim]],
    batch: int | None,
) -> ir.Model:
    """Converts a network; see `converters.tensorflow.convert_tensorflow`."""
    tf = tensorflow()
    load_extra("tf2onnx", "tensorflow", "converting from TensorFlow")
    source = read_source(path, inputs, outputs, signature)
    with quiet("tensorflow", "tf2onnx"), _as_one_line(path):
        parameters = prepare(tf, source)
        _set_shapes(source, shapes, batch)
        model = ir.from_proto(_to_onnx(tf, source))
    clean(model, source, parameters)
    return model


def prepare(tf: Any, source: Source) -> dict[str, np.ndarray]:
    """Rewrites the graph of `source` for tf2onnx; returns its parameters by name."""
    _check(tf, source)
    inline(tf, source)
    find_ends(source)
    nodes = [tensor.partition(":")[0] for tensor in (*source.inputs.values(), *source.outputs.values())]
    _keep_statistics(source, nodes)
    parameters = freeze(source)
    settle_batch_normalization(source)
    restore_dropout(source)
    prune(source.graph, nodes)
    settle_switches(source)
    carry_arrays(source)
    anchor_constants(source)
    restore_batch_normalization(tf, source)
    prune(source.graph, nodes)
    _check(tf, source)
    return parameters


def _check(tf: Any, source: Source) -> None:
    """Has TensorFlow look at the graph: importing it raises what its optimizer, in C++, would abort the process at.

    What is computed from constants is computed when the graph is optimized, so it must not be huge.
    """
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(source.graph, name="")
    constant: set[str] = set()
    for op in graph.get_operations():  # in an order in which it can run, but for loops
        made = op.type == "Const" or (bool(op.inputs) and all(tensor.op.name in constant for tensor in op.inputs))
        if not made or op.type in VARIABLES:
            continue
        constant.add(op.name)
        size = sum(tensor.shape.num_elements() or 0 for tensor in op.outputs)
        if op.type != "Const" and size > _MOST_COMPUTED:
            raise SurgeryError(f"{source.path}: node {op.name!r} ({op.type}) makes {size:,} numbers of constants")


def _keep_statistics(source: Source, nodes: Sequence[str]) -> None:
    """Prunes what the network does not need, but not the moving statistics, which a graph that trains does not read."""
    named = [node.name for node in source.graph.node if node.name.endswith(("/moving_mean", "/moving_variance"))]
    statistics = [name for name in named if name in source.variables]
    prune(source.graph, [*nodes, *statistics])


def _set_shapes(source: Source, shapes: Mapping[str, Sequence[Dim]], batch: int | None) -> None:
    """Gives the inputs their shapes."""
    left = dict(shapes)
    nodes = {node.name: node for node in source.graph.node}
    for name, tensor in source.inputs.items():
        node = nodes.get(tensor.partition(":")[0])
        if node is None:
            raise SurgeryError(f"{source.path}: nothing that the outputs need reads input {name!r}")
        shape = node.attr["shape"].shape
        known = "shape" in node.attr and not shape.unknown_rank
        dims = [dim.size for dim in shape.dim] if known else None
        key = name if name in left else ""
        if key in left and dims != []:
            dims = [dims[0] if dims else -1, *(d if isinstance(d, int) else -1 for d in left.pop(key))]
        if dims is None:
            raise SurgeryError(
                f"{source.path}: does not say the shape of its input {name!r}; give it without the batch, as "
                "--shape 224x224x3 (shape= in Python)"
            )
        if batch is not None and dims:
            dims[0] = batch
        if dims:
            node.attr["shape"].shape.Clear()
            for size in dims:
                node.attr["shape"].shape.dim.add(size=size)
    if left:
        raise SurgeryError(
            f"{source.path}: no input takes the shape for {', '.join(left)}; it has {', '.join(source.inputs)}"
        )


def _to_onnx(tf: Any, source: Source) -> Any:
    """Runs tf2onnx, without what it does to weights: fusing batch normalization, merging equal ones."""
    from tf2onnx import optimizer, tf_loader, tf_utils, tfonnx
    from tf2onnx.optimizer.back_to_back_optimizer import BackToBackOptimizer, _func_map

    inputs, outputs = list(source.inputs.values()), list(source.outputs.values())
    renamed = _public_names(source)
    kept = mask(source.graph)
    with tf.Graph().as_default():
        graph = tf_loader.tf_optimize(inputs, outputs, source.graph)
    unmask(graph, kept)

    class BackToBack(BackToBackOptimizer):
        def optimize(self, graph: Any, iteration: int) -> Any:
            fusion = _func_map.pop(("Conv", "BatchNormalization"), None)
            try:
                return super().optimize(graph, iteration)
            finally:
                if fusion is not None:
                    _func_map["Conv", "BatchNormalization"] = fusion

    steps = optimizer._get_optimizers() | {"remove_back_to_back": BackToBack}
    del steps["merge_duplication"]
    tf_utils.TF_IGNORED_NODE_ATTRS.add("element_shape_except0")  # TensorArrayConcat's, of which it can make nothing
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph, name="")
        translated = tfonnx.process_tf_graph(
            tf_graph,
            opset=_OPSET,
            custom_op_handlers={DROPOUT: (_dropout, [])},
            use_default=[node.name for node in graph.node if node.name.endswith(HIDDEN)],
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=renamed,
        )
        return optimizer.optimize_graph(translated, catch_errors=True, optimizers=steps).make_model("tensorflow")


def _dropout(ctx: Any, node: Any, name: str, args: Any) -> None:
    """Makes Dropout of what stands for it."""
    ratio = ctx.make_const(f"{name}/ratio", np.array(float(node.get_attr_str("message")), np.float32))
    node.type = "Dropout"
    node.attr.clear()
    ctx.replace_inputs(node, [node.input[0], ratio.output[0]])


def _public_names(source: Source) -> dict[str, str]:
    """Tensor → name; an output that is called as an input, or is one, gets a number."""
    found = {tensor: name for name, tensor in source.inputs.items()}
    for name, tensor in source.outputs.items():
        if tensor not in found:
            found[tensor] = name if name not in source.inputs else f"{name}_2"
    return found


@contextlib.contextmanager
def _as_one_line(path: Path) -> Iterator[None]:
    """Makes one line of whatever TensorFlow and tf2onnx raise, which is of many kinds."""
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise SurgeryError(f"{path}: TensorFlow or tf2onnx cannot convert it ({reason})") from error
