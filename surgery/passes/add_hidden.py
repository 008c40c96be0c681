"""Add a hidden layer in front of the head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, NonNegativeInt

from surgery.errors import SurgeryError
from surgery.io import infer_shapes
from surgery.layers import Layer, find_layer, head, layers
from surgery.passes.activations import Activation, insert_activation
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.dense import layer_stem, read_units, write_units
from surgery.passes.editing import insert_behind, new_parameter, register, unique
from surgery.passes.initializers import Initializer, Units, initialize

__all__ = ["AddHidden"]

_DONE = "surgery.add_hidden"  # on the hidden layer: the arguments it was made with


@pass_dataclass
class AddHidden(Pass):
    """Adds a layer of units with an activation in front of the head, which gets new weights for its new inputs.

    In front of a Conv it is a convolution of size 1. The head's new weights are drawn like the layer's own; its
    biases and marks stay. Applied again with the same arguments it changes nothing; a second layer needs another name.

    Attributes:
        units: How many units.
        activation: Their activation.
        initializer: The first weights: he (normal; He et al. 2015), glorot (uniform; Glorot and Bengio 2010), zeros,
            or he_uniform, he_normal, glorot_uniform, glorot_normal. Biases start at 0.
        seed: Of the first weights.
        name: The layer's name; its parameters are ``<name>.weight`` and ``<name>.bias``.
        output: The output whose head is meant; needed where there are several.
    """

    shorthand: ClassVar[str | None] = "units"

    units: Units
    activation: Activation = "relu"
    initializer: Initializer = "he"
    seed: NonNegativeInt = 0
    name: Annotated[str, Field(min_length=1)] = "hidden"
    output: str | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        arguments = json.dumps(self.arguments(), ensure_ascii=False)
        if any(layer.name == self.name for layer in layers(model)):
            if find_layer(model, self.name).node.metadata_props.get(_DONE) == arguments:
                return
            raise SurgeryError(f"there is a layer named {self.name!r} already; give the new one another `name`")
        top = head(model, self.output)
        rows, bias = read_units(top)
        if top.op_type == "Conv" and top.node.attributes.get_int("group", 1) != 1:
            raise SurgeryError(f"head {top.name!r} is a Conv of several groups; no layer can be added in front of it")
        inputs = rows.shape[1]
        kernel = [1] * (rows.ndim - 2)
        weight = initialize(self.initializer, (self.units, inputs, *kernel), self.seed, f"{self.name}.weight")
        stem = layer_stem(top)
        new_rows = initialize(self.initializer, (len(rows), self.units, *rows.shape[2:]), self.seed, f"{stem}.weight")
        hidden = self._layer(top, weight)
        write_units(top, new_rows, bias, stem, keep_marks=True)
        infer_shapes(model)
        find_layer(model, self.name).node.metadata_props[_DONE] = arguments
        axis = 1 if top.op_type == "Conv" else -1
        insert_activation(model, hidden, self.activation, f"{self.name}/{self.activation}", axis)
        yield Change(self.name, f"{self.units} units, {self.activation}, {self.initializer} weights")
        yield Change(top.name, f"new weights for {self.units} inputs instead of {inputs}")

    def _layer(self, top: Layer, weight: np.ndarray) -> ir.Value:
        """Inserts the layer between the head and its input, whose other users are left alone; returns its output."""
        node, graph = top.node, top.node.graph
        assert isinstance(graph, ir.Graph)
        dtype = top.parameters["weight"].dtype or ir.DataType.FLOAT
        stored = new_parameter(weight.T if node.op_type == "MatMul" else weight, dtype)
        bias = new_parameter(np.zeros(self.units), dtype)
        register(graph, stored, f"{self.name}.weight")
        register(graph, bias, f"{self.name}.bias")
        inputs = [node.inputs[0], stored, bias]
        attributes: dict[str, Any] = {}
        if node.op_type == "MatMul":
            inputs.pop()
        elif node.op_type == "Conv":
            attributes["kernel_shape"] = list(weight.shape[2:])
        else:
            attributes["transB"] = 1
        hidden = ir.node(node.op_type, inputs, attributes, name=self.name)
        output = hidden.outputs[0]
        output.name, output.dtype = unique(graph, self.name), dtype
        graph.insert_before(node, hidden)
        node.replace_input_with(0, output)
        if node.op_type != "MatMul":
            return output
        return insert_behind(output, "Add", f"{self.name}/Add", inputs=[bias]).outputs[0]
