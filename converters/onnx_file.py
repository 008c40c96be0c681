"""ONNX files as a source: loaded, cleaned and, if old, upgraded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from converters.registry import converter, reference
from surgery.emit import initializer
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes, load
from surgery.marks import Marks, marks
from surgery.runtime import load_runtime

__all__ = ["convert_onnx"]

_OLDEST = 13
_SEVENTH = 7  # from here on, onnx's version converter upgrades
_UPGRADED = 17


@converter("ONNX", recognizes=lambda path: path.suffix == ".onnx")
def convert_onnx(source: Path) -> ir.Model:
    """Loads an ONNX file; operator sets before 13, the first with gradients, are upgraded to 17.

    Weights that are graph inputs too, as the files of 2017 and 2018 have them, or constants of the graph, become
    initializers.

    Args:
        source: The file.

    Raises:
        SurgeryError: It cannot be read, its operator set is newer than the runtimes read, or it cannot be upgraded.
    """
    model = load(source, oldest=1)
    version = model.opset_imports.get("", _OLDEST)
    if version < _SEVENTH:
        try:
            _to_seventh(model)
        except (SurgeryError, KeyError, TypeError) as error:
            raise SurgeryError(f"{source}: cannot be upgraded from operator set {version} ({error})") from error
    return _upgrade(model, source, version) if version < _OLDEST else model


@reference("ONNX")
def run_onnx(source: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns what ONNX Runtime computes from the file as it is."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"]).run(None, inputs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(f"{source}: ONNX Runtime cannot run the file as it is ({reason})") from error


def _to_seventh(model: ir.Model) -> None:
    """Upgrades operators of sets 1 to 6 to 7, as onnx's changelog (docs/Changelog.md) has their differences.

    Onnx's own version converter puts the axes of broadcasts wrong and knows nothing of sets 1 to 4 without shapes. What
    is left here as it is, such as the inputs of Tile, the checker refuses.
    """
    for node in list(model.graph):
        for name in ("consumed_inputs", "is_test"):  # memory that might be used again; a converted model infers
            node.attributes.pop(name, None)
        if node.op_type == "Concat" and "axis" not in node.attributes:
            node.attributes.add(ir.AttrInt64("axis", 1))
        elif node.op_type == "Pad" and "paddings" in node.attributes:
            node.attributes.add(ir.AttrInt64s("pads", node.attributes.pop("paddings").as_ints()))
        elif node.op_type == "Cast" and node.attributes["to"].type == ir.AttributeType.STRING:
            kind = ir.DataType[node.attributes.pop("to").as_string()]
            node.attributes.add(ir.AttrInt64("to", int(kind)))
        elif node.op_type == "Reshape" and "shape" in node.attributes:
            shape = _constant(model.graph, f"{node.name}/shape", node.attributes.pop("shape").as_ints())
            node.resize_inputs(2)
            node.replace_input_with(1, shape)
    model.opset_imports[""] = _SEVENTH - 1
    infer_shapes(model, strict=False)
    for node in list(model.graph):
        if node.attributes.pop("broadcast", None) is not None and node.op_type != "Gemm":
            _broadcast(model.graph, node)
    model.opset_imports[""] = _SEVENTH


def _broadcast(graph: ir.Graph, node: ir.Node) -> None:
    """Gives the second operand of an old broadcast the axes of size one behind its own that NumPy's rule wants."""
    x, operand = node.inputs
    axis = node.attributes.pop("axis", None)
    if axis is None or x is None or operand is None:
        return
    if x.shape is None or operand.shape is None:
        raise SurgeryError(f"operator {node.name!r} broadcasts along axis {axis.as_int()} of a shape that is not known")
    count = len(x.shape) - axis.as_int() % len(x.shape) - len(operand.shape)
    if count > 0:
        rank = len(operand.shape)
        unsqueeze = ir.node("Unsqueeze", [operand], {"axes": list(range(rank, rank + count))})
        unsqueeze.name = unsqueeze.outputs[0].name = f"{node.name}/unsqueeze"
        graph.insert_before(node, unsqueeze)
        node.replace_input_with(1, unsqueeze.outputs[0])


def _constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    return initializer(graph, name, np.array(numbers, np.int64))


def _upgrade(model: ir.Model, source: Path, version: int) -> ir.Model:
    model.ir_version = IR_VERSION  # in IR version 3 weights are graph inputs, which `load` has made them no longer
    try:
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]  # types change: Dropout's mask was a float once
        upgraded = ir.from_proto(onnx.version_converter.convert_version(proto, _UPGRADED))
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:  # the last for more than 2 GB
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(
            f"{source}: cannot be upgraded from operator set {version} to {_UPGRADED} ({reason}); export it with "
            f"operator set {_OLDEST} or later"
        ) from error
    LiftConstantsToInitializersPass(size_limit=0)(upgraded)  # axes and such, attributes before
    _copy_metadata(model, upgraded, source)
    infer_shapes(upgraded)
    return upgraded


def _copy_metadata(old: ir.Model, new: ir.Model, source: Path) -> None:
    """Copies the entries on values and operators, marks among them: onnx's version converter drops them."""
    values = ir.convenience.create_value_mapping(new.graph)
    for name, value in ir.convenience.create_value_mapping(old.graph).items():
        if name in values:
            values[name].metadata_props.update(value.metadata_props)
        elif marks(value) != Marks():
            raise SurgeryError(
                f"{source}: upgrading it to operator set {_UPGRADED} would lose the marks of parameter {name!r}; "
                f"export the network with operator set {_OLDEST} or later and mark that"
            )
    nodes = {node.name: node for node in new.graph}
    for node in old.graph:
        made = (values[str(o.name)].producer() for o in node.outputs if o.name in values)
        other = nodes.get(node.name) or next(made, None)
        if other is not None:
            other.metadata_props.update(node.metadata_props)
