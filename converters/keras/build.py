"""Builds the ONNX graph of a Keras network, call by call."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from converters.keras.context import Context, LayerFunction, find_layer, known_types, tensors
from converters.keras.flatten import flatten_in_place
from converters.keras.names import Names
from converters.keras.network import Call, Layer, Network, Ref, references
from converters.keras.parameters import Parameters
from converters.keras.tensor import Layouts, Tensor, to_first
from converters.keras.weights import Weights
from converters.options import Dim
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest
from surgery.io import IR_VERSION, MAX_OPSET

__all__ = ["Builder", "Layout"]

Layout = Literal["keras", "nchw"]
_TYPES = {
    "float64": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT,
    "bfloat16": ir.DataType.FLOAT,
    "float32": ir.DataType.FLOAT,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}
_MASKS = ("mask", "query_mask", "value_mask", "key_mask", "attention_mask", "padding_mask")
_IGNORING_MASKS = ("BatchNormalization",)  # at inference
_MOST_CALLS = 20_000  # of all layers, models in models counted each time
_IMAGE = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}  # by rank
_log = logging.getLogger(__name__)


class Builder:
    """The state of one conversion.

    Args:
        path: The file that errors name.
        network: The network.
        weights: Its variables.
        weights_path: Where those are.
        version: Keras's major version.
        shapes: Input shapes without the batch that override the network's, by input name; "" for the first input.
        batch: Fixes the size of the batch.
        layout: Whether inputs with spatial axes are as Keras has them, or channels first.
        custom: Converts the layers that are not registered.

    Attributes:
        op: Writes operators.
        layouts: Changes layouts.
        parameters: Makes initializers.
    """

    def __init__(
        self,
        path: Path,
        network: Network,
        weights: Weights,
        weights_path: Path,
        version: int,
        shapes: Mapping[str, Sequence[Dim]],
        batch: int | None,
        layout: Layout,
        custom: LayerFunction | None,
    ) -> None:
        self.path = path
        self.version = version
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": MAX_OPSET}, name=network.name or path.stem)
        self.op = Emitter(self.graph)
        self.layouts = Layouts(self.op)
        self.parameters = Parameters(self.graph, weights, weights_path)
        self._network = network
        self._shapes = dict(shapes)
        self._batch = batch
        self._layout = layout
        self._custom = custom
        self._names = Names()
        self._dims = 0
        self._calls = 0

    def build(self) -> ir.Model:
        """Returns the model.

        Raises:
            SurgeryError: A layer is unknown, or does not fit what it reads or its weights.
        """
        inputs = [self._input(ref) for ref in self._network.inputs]
        if self._shapes:
            names = [str(value.name) for value in self.graph.inputs]
            raise SurgeryError(f"{self.path}: no input takes the shape for {', '.join(self._shapes)}; it has {names}")
        outputs = self._run(self._network, inputs, "")
        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="onnx-surgery")
        self._finish(outputs)
        RemoveUnusedNodesPass()(model)
        flatten_in_place(model)
        return model

    def note(self, message: str) -> None:
        """Says what the converted model does not have."""
        _log.warning("%s: %s", self.path, message)

    def unknown_dim(self) -> str:
        """A new name for a dimension of which nothing is known."""
        self._dims += 1
        return f"d{self._dims}"

    # Inputs and outputs

    def _input(self, ref: Ref) -> Tensor:
        layer = next((x for x in self._network.layers if x.name == ref.layer), None)
        if layer is None or layer.type != "InputLayer":
            raise SurgeryError(f"{self.path}: its input {ref.layer!r} is not an InputLayer")
        dims = self._input_dims(layer)
        moved = self._layout == "nchw" and len(dims) >= 4
        dtype = _TYPES.get(_dtype(layer.config.get("dtype")))
        if dtype is None:
            raise SurgeryError(f"{self.path}: input {ref.layer!r} takes {layer.config.get('dtype')}, not numbers")
        value = ir.Value(
            name=layer.name,
            shape=ir.Shape(to_first(dims) if moved else dims),
            type=ir.TensorType(dtype),
        )
        self._names.take(value, layer.name)
        self.graph.inputs.append(value)
        return Tensor(value, tuple(dims), moved)

    def _input_dims(self, layer: Layer) -> list[Dim]:
        shape = next((s for k in ("batch_shape", "batch_input_shape") if (s := layer.config.get(k)) is not None), None)
        if shape is None and layer.config.get("input_shape") is not None:
            shape = [None, *layer.config["input_shape"]]
        key = layer.name if layer.name in self._shapes else ""
        given = self._shapes.pop(key, None)
        if given is not None:
            shape = [shape[0] if shape else None, *given]
        if not isinstance(shape, list | tuple) or not shape:
            raise SurgeryError(
                f"{self.path}: does not say the shape of {layer.name!r}; give it with `shape`, as 28x28x1, without the "
                "batch"
            )
        for d in shape:
            whole = isinstance(d, int) and not isinstance(d, bool)
            if not (d is None or isinstance(d, str) or (whole and 0 < d < 2**31)):
                raise SurgeryError(f"{self.path}: declares the shape {shape} for {layer.name!r}")
        known = {str(d.value) for i in self.graph.inputs for d in i.shape or () if not isinstance(d, int)} - {"N"}
        names = _IMAGE.get(len(shape), ())
        dims: list[Dim] = []
        for axis, d in enumerate(shape):
            if axis == 0:
                d = self._batch if self._batch is not None else d if isinstance(d, int) and given is None else "N"
            elif d is None:
                d = names[axis - 1] if axis <= len(names) else f"size{axis}"
            dims.append(f"{d}_{layer.name}" if isinstance(d, str) and d in known else d)
        return dims

    def _finish(self, outputs: Sequence[Tensor]) -> None:
        """Declares the outputs, as Keras has them, named by their layers."""
        for ref, tensor in zip(self._network.outputs, outputs, strict=True):
            self.op.prefix = f"{ref.layer}/"
            value = self.layouts.get(tensor, False)
            if value.is_graph_input() or value.is_initializer() or value in self.graph.outputs:
                value = self.op.Identity(value)
                value.shape, value.type = ir.Shape(tensor.dims), tensor.value.type
            self.graph.outputs.append(value)
            self._names.layer(self._since(0), f"{ref.layer}/output", ())
            self._names.take(value, ref.layer)

    def _since(self, count: int) -> list[ir.Node]:
        """The operators behind the first `count`."""
        return list(itertools.islice(reversed(self.graph), len(self.graph) - count))[::-1]

    # Layers

    def _run(self, network: Network, inputs: Sequence[Tensor], scope: str) -> list[Tensor]:
        """Calls a network's layers, each once what it reads is there."""
        done: dict[tuple[str, int], list[Tensor]] = {}
        if len(inputs) != len(network.inputs):
            raise SurgeryError(
                f"{self.path}: the model {network.name!r} has {len(network.inputs)} inputs, and is given {len(inputs)}"
            )
        for ref, tensor in zip(network.inputs, inputs, strict=True):
            done[ref.layer, ref.call] = [tensor]
        for layer, index in self._order(network, set(done)):
            call = layer.calls[index]
            given = Call(*(self._resolve(part, done) for part in (call.args, call.kwargs)))
            name = scope + layer.name
            suffix = f"_{index}" if index else ""
            done[layer.name, index] = self.call(layer, name, given, suffix)
        return [self._find(ref, done) for ref in network.outputs]

    def _order(self, network: Network, given: set[tuple[str, int]]) -> list[tuple[Layer, int]]:
        """All calls in an order in which each comes after those that it reads."""
        calls = {(x.name, i): (x, i) for x in network.layers for i in range(len(x.calls)) if (x.name, i) not in given}
        waits: dict[tuple[str, int], set[tuple[str, int]]] = {}
        readers: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for key, (layer, index) in calls.items():
            call = layer.calls[index]
            reads = {(ref.layer, ref.call) for ref in references([call.args, call.kwargs])}
            for read in reads:
                if read not in calls and read not in given:
                    raise SurgeryError(
                        f"{self.path}: layer {layer.name!r} reads call {read[1]} of {read[0]!r}, which there is not"
                    )
                readers.setdefault(read, []).append(key)
            waits[key] = reads - given
        ready = [key for key in calls if not waits[key]]
        order: list[tuple[Layer, int]] = []
        for key in ready:  # grows meanwhile
            order.append(calls[key])
            for reader in readers.get(key, []):
                waits[reader].discard(key)
                if not waits[reader]:
                    ready.append(reader)
        if len(order) < len(calls):
            stuck = next(key for key in calls if waits[key])
            raise SurgeryError(f"{self.path}: its layers read each other in a circle, {stuck[0]!r} among them")
        return order

    def _resolve(self, data: Any, done: Mapping[tuple[str, int], list[Tensor]]) -> Any:
        if isinstance(data, Ref):
            return self._find(data, done)
        if isinstance(data, list):
            return [self._resolve(item, done) for item in data]
        if isinstance(data, dict):
            return {key: self._resolve(item, done) for key, item in data.items()}
        return data

    def _find(self, ref: Ref, done: Mapping[tuple[str, int], list[Tensor]]) -> Tensor:
        found = done.get((ref.layer, ref.call), [])
        if ref.tensor >= len(found) or ref.tensor < 0:
            raise SurgeryError(f"{self.path}: output {ref.tensor} of call {ref.call} of {ref.layer!r} does not exist")
        return found[ref.tensor]

    def call(self, layer: Layer, name: str, given: Call, suffix: str = "") -> list[Tensor]:
        """Calls one layer, or a network in its place.

        Args:
            layer: The layer.
            name: Its name, behind those of the models it is in.
            given: What it is given.
            suffix: What tells the operators of this call from those of others.
        """
        self._calls += 1
        if self._calls > _MOST_CALLS:
            raise SurgeryError(f"{self.path}: calls layers more than {_MOST_CALLS:,} times; no network does")
        if layer.network is not None:
            return self._run(layer.network, list(tensors([given.args, given.kwargs])), f"{name}{suffix}/")
        masked = any(isinstance(given.kwargs.get(name), Tensor) for name in _MASKS)
        given = Call(given.args, {key: value for key, value in given.kwargs.items() if key not in _MASKS})
        context = Context(self, layer, name, given, suffix)
        if masked and layer.type not in _IGNORING_MASKS:
            raise context.mask_error()
        before = len(self.graph)
        outer, self.op.prefix = self.op.prefix, f"{name}{suffix}/"
        result = self._apply(context)
        self.op.prefix = outer
        if result is None:
            raise context.error("the function in `custom` returned nothing; it must return the layer's outputs")
        outputs = [result] if isinstance(result, Tensor) else list(result)
        self._names.layer(self._since(before), name + suffix, [t.value for t in outputs])
        return outputs

    def _apply(self, context: Context) -> Tensor | Sequence[Tensor] | None:
        function = self._function(context)
        if function is self._custom:
            return function(context)
        try:
            return function(context)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise context.error(f"its arguments are not those of Keras ({error!r})") from error

    def _function(self, context: Context) -> LayerFunction:
        function = find_layer(context.layer) or self._custom
        if function is None:
            lambdas = "its Python code is never run; " if context.layer.type == "Lambda" else ""
            hint = "" if lambdas else nearest(context.layer.type, known_types())
            raise context.error(
                f"cannot be converted{hint}; {lambdas}supply it with --custom module:function (custom= in Python), or "
                "convert with --via tf2onnx"
            )
        return function


def _dtype(data: Any) -> str:
    """The name of a type, or of what a policy computes with."""
    if isinstance(data, dict):
        config = data.get("config")
        data = config.get("name") if isinstance(config, dict) else None
    name = str(data or "float32")
    return "float32" if name.startswith("mixed_") else name
