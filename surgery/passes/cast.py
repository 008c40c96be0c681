"""Half precision for inference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import new_parameter, opset, register, unique
from surgery.selectors import Selector, select

__all__ = ["Cast"]

_FLOAT, _FLOAT_TYPE = ir.DataType.FLOAT, "tensor(float)"  # in onnx-ir, and in ONNX's operator specification
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@pass_dataclass
class Cast(Pass):
    """Makes a copy for inference that computes in half precision; train the float32 one, and cast what comes out.

    Inputs and outputs stay float32. So does what an operator takes in float32 only, by ONNX's operator specification.
    Idempotent.

    Attributes:
        to: float16 or bfloat16 (which ONNX Runtime computes with on few devices).
        keep: Layers that go on computing in float32.
    """

    shorthand: ClassVar[str | None] = "to"

    to: Literal["float16", "bfloat16"]
    keep: Selector | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        graph, target = model.graph, _TYPES[self.to]
        if next(iter(graph.subgraphs()), None) is not None or model.functions:
            raise SurgeryError("cast: models with control flow or functions of their own cannot be cast")
        kept = {node for layer in (select(model, self.keep) if self.keep is not None else []) for node in layer.nodes}
        caster = _Caster(model, target)
        work = [(node, caster.places(node)) for node in graph if node not in kept]
        if not any(v.is_initializer() and v.dtype == _FLOAT for _, places in work for v in places.values()):
            if not any(v.dtype == target for v in graph.initializers.values()):
                raise SurgeryError(f"cast: no operator of the model has weights that may be {self.to}")
            return
        for node in list(graph):
            caster.convert(node, whole=node not in kept)
        caster.finish()
        yield Change("model", f"{caster.numbers:,} numbers in {len(caster.weights)} weights now {self.to}")
        if caster.clipped:
            yield Change("model", f"{caster.clipped} numbers beyond the range of {self.to} set to its ends")


class _Caster:
    """Turns a graph's float32 into another type, operator by operator, from the inputs on."""

    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self.graph, self.target, self.version = model.graph, target, opset(model)
        self.weights: dict[ir.Value, ir.Value] = {}  # the cast copy of each weight
        self.numbers = self.clipped = 0
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def places(self, node: ir.Node) -> dict[int, ir.Value]:
        """The floating-point inputs of `node` that may be of the target type."""
        schema = self._schema(node)
        if schema is None:
            return {}
        found = {}
        for index, value in enumerate(node.inputs):
            types = schema.inputs[min(index, len(schema.inputs) - 1)].types  # the last may be variadic
            wanted = {_FLOAT_TYPE, f"tensor({self.target.name.lower()})"}
            if value is not None and value.dtype in (_FLOAT, self.target) and wanted <= set(types):
                found[index] = value
        return found

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        try:
            return onnx.defs.get_schema(node.op_type, self.version, "")
        except onnx.defs.SchemaError:
            return None

    def convert(self, node: ir.Node, whole: bool) -> None:
        """Makes `node` compute in the target type where it may and `whole` says so, in float32 otherwise."""
        places = self.places(node) if whole else {}
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FLOAT, self.target):
                node.replace_input_with(index, self._as(value, self.target if index in places else _FLOAT))
        if node.op_type == "Cast" and whole and node.attributes.get_int("to", 0) == int(_FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(self.target))
            node.outputs[0].dtype = self.target
            return
        schema = self._schema(node)
        if schema is not None and node.op_type != "Cast":
            same = {schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in places}
            for index, output in enumerate(node.outputs):
                kind = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
                if kind in same and output.dtype in (None, _FLOAT):
                    output.dtype = self.target

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`: itself, a copy of a weight, or the output of a Cast."""
        if value.dtype == dtype:
            return value
        if value.is_initializer():
            return self._weight(value)
        if (value, dtype) not in self._casts:
            self._casts[value, dtype] = self._cast(value, dtype)
        return self._casts[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = unique(self.graph, f"{value.name}/{dtype.name.lower()}")
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
        node.outputs[0].name, node.outputs[0].dtype = name, dtype
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph.node(0), node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]

    def _weight(self, value: ir.Value) -> ir.Value:
        if value not in self.weights:
            assert value.const_value is not None
            array = value.const_value.numpy()
            end = float(ml_dtypes.finfo(self.target.numpy()).max)
            self.clipped += int((np.abs(array) > end).sum())
            self.numbers += array.size
            copy = new_parameter(np.clip(array, -end, end), self.target)
            copy.metadata_props.update(value.metadata_props)
            register(self.graph, copy, f"{value.name}/{self.target.name.lower()}")
            self.weights[value] = copy
        return self.weights[value]

    def finish(self) -> None:
        """Gives outputs their type back, and the cast weights their names."""
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == self.target:
                name = value.name
                value.name = unique(self.graph, f"{name}/{self.target.name.lower()}")
                output = self._cast(value, _FLOAT)
                output.name, output.shape = name, value.shape
                self.graph.outputs[index] = output
        for old, new in self.weights.items():
            if old.uses() or old.is_graph_output():
                continue
            name = str(old.name)
            self.graph.initializers.pop(name)
            self.graph.initializers.pop(str(new.name))
            new.name = name
            if new.const_value is not None:
                new.const_value.name = name
            self.graph.initializers[name] = new
