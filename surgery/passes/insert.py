"""Insert an operator, or a function of operators, behind layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError, nearest
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import add_constant, forget_shapes, insert_behind, opset
from surgery.passes.loading import load_object
from surgery.selectors import Selector, select

__all__ = ["Insert"]

_DONE = "surgery.insert"  # on what was inserted: the arguments it was inserted with
Attribute = int | float | str | list[int] | list[float] | list[str]
Number = int | float
Array = Number | list[Number] | list[list[Number]]


@pass_dataclass
class Insert(Pass):
    """Inserts an operator behind each of some layers. Idempotent: one that is there already is not inserted again.

    Attributes:
        layers: Behind which layers.
        operator: An ONNX operator (``LRN``), or an onnxscript function (``package.module:function``), which becomes
            part of the model. Such a name runs code: only use recipes that you trust.
        attributes: The operator's attributes.
        inputs: Its inputs behind the first, which is the layer's output: numbers and lists of them.
        name: What the operator is called behind a layer, ``<layer>/<name>``; by default like its type.
    """

    layers: Selector
    operator: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")]
    attributes: dict[str, Attribute] = Field(default_factory=dict)
    inputs: list[Array] = Field(default_factory=list)
    name: str | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        selected = select(model, self.layers)
        arguments = json.dumps(self.arguments(), ensure_ascii=False)
        present = {node.name for node in model.graph}
        if ":" in self.operator:
            domain, op_type, known = _function(model, self.operator)
        else:
            domain, op_type, known = "", self.operator, _operator(self.operator, opset(model), 1 + len(self.inputs))
        for key in self.attributes:
            if key not in known:
                raise SurgeryError(f"operator {op_type} has no attribute {key!r}{nearest(key, known)}")
        attributes = {k: float(v) if known[k] and isinstance(v, int) else v for k, v in self.attributes.items()}
        for layer in selected:
            name = f"{layer.name}/{self.name or op_type}"
            if name in present or layer.node.metadata_props.get(_DONE) == arguments:
                continue
            value = layer.output
            dtype = (value.dtype or ir.DataType.FLOAT).numpy()
            constants = [
                add_constant(model.graph, _array(data, dtype), f"{name}.{i}") for i, data in enumerate(self.inputs, 1)
            ]
            forget_shapes([value])
            node = insert_behind(value, op_type, name, inputs=constants, attributes=attributes, domain=domain)
            node.metadata_props[_DONE] = arguments
            yield Change(layer.name, f"{op_type} inserted behind it")


def _array(data: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers with a point as the layer's type, whole ones as int64."""
    array = np.array(data)
    return array.astype(np.int64 if array.dtype.kind == "i" else dtype)


def _operator(op_type: str, version: int, inputs: int) -> dict[str, bool]:
    """The attributes of an operator, and whether each is a float.

    Raises:
        SurgeryError: There is no such operator, or it takes another number of inputs.
    """
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError as error:
        names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
        raise SurgeryError(f"operator set {version} has no operator {op_type!r}{nearest(op_type, names)}") from error
    if not schema.min_input <= inputs <= schema.max_input:
        raise SurgeryError(
            f"operator {op_type} takes {schema.min_input} to {schema.max_input} inputs; `inputs` makes it {inputs}"
        )
    return {name: a.type == onnx.defs.OpSchema.AttrType.FLOAT for name, a in schema.attributes.items()}


def _function(model: ir.Model, name: str) -> tuple[str, str, dict[str, bool]]:
    """Adds an onnxscript function to `model`; its domain, its name, and its attributes as `_operator` gives them."""
    found = load_object(name)
    if not hasattr(found, "to_function_proto"):
        raise SurgeryError(f"{name} is no onnxscript function; decorate it with @onnxscript.script()")
    proto = found.to_function_proto()
    function = ir.from_proto(proto)
    model.functions[function.identifier()] = function
    model.opset_imports.setdefault(function.domain, 1)
    floats = {a.name: a.type == onnx.AttributeProto.FLOAT for a in proto.attribute_proto}
    return function.domain, function.name, {**dict.fromkeys(proto.attribute, False), **floats}
