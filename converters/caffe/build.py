"""Builds the ONNX graph of a Caffe network, layer by layer in the definition's order, as Caffe runs it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from converters.caffe.caffe_pb2 import LayerParameter
from converters.caffe.context import Context, Dim, LayerFunction, find_layer, known_types
from converters.caffe.fields import Fields, unknown_field
from converters.caffe.parameters import Parameters
from converters.caffe.phases import DATA_LAYERS, included
from converters.caffe.read import Source
from converters.caffe.transform import find_mean, find_transformation, preprocessing
from converters.context import unique_name
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest
from surgery.io import IR_VERSION, MAX_OPSET
from surgery.marks import set_preprocessing

__all__ = ["Builder"]


class Builder:
    """The state of one conversion.

    Args:
        source: The network as read.
        shapes: Input shapes without the batch that override the definition's, by input name; "" for the first input.
        batch: Fixes the batch's size.
        seed: For parameters that no file gives.
        custom: Converts the layers of types that are not registered.

    Attributes:
        path: The file that errors name.
        data: Inputs that were data layers' tops, with the layers.
        last_resort: Tops and values that are the outputs of a net that has no other.
    """

    def __init__(
        self,
        source: Source,
        shapes: Mapping[str, Sequence[Dim]],
        batch: int | None,
        seed: int,
        custom: LayerFunction | None,
    ) -> None:
        self.source = source
        self.path = source.path
        self.shapes = dict(shapes)
        self.batch = batch
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": MAX_OPSET}, name=source.net.name or source.path.stem)
        self.op = Emitter(self.graph)
        self.parameters = Parameters(source, self.graph, seed)
        self.data: dict[ir.Value, LayerParameter] = {}
        self.last_resort: list[tuple[str, ir.Value]] = []
        chosen = included(source.net)
        self.layers = [source.net.layer[index] for index in chosen]
        self._fields = [source.fields[index] if source.fields else {} for index in chosen]
        self._means: dict[str, np.ndarray | None] = {}
        self._batches: dict[int, str] = {}  # batch size of the definition → its dimension's name
        self._custom = custom
        self._tops: dict[str, ir.Value] = {}
        self._wanted: dict[ir.Value, str] = {}  # the first top that each value was
        self._without_value: set[str] = set()  # tops of losses and the like
        self._unread: dict[str, ir.Value] = {}  # tops that no layer has read yet
        self._declared: dict[ir.Value, str] = {}  # outputs that loss layers declare
        self._deferred: list[tuple[LayerParameter, ir.Value, str, str, dict[str, int]]] = []
        self._value_names: Counter[str] = Counter()
        self._node_names: Counter[str] = Counter()
        self._dims = 0
        self._recurrent = any(layer.type in ("LSTM", "RNN") for layer in self.layers)  # time comes before the batch
        self._reads = _count_reads(self.layers)
        self._versions: Counter[str] = Counter()
        self._makers = {top: layer.name for layer in reversed(self.layers) for top in layer.top}

    def build(self) -> ir.Model:
        """Returns the model.

        Raises:
            SurgeryError: A layer is unknown, or does not fit what it reads or its weights.
        """
        if not self.layers:
            raise SurgeryError(f"{self.path}: has no layers; is it a Caffe net definition?")
        for layer, fields in zip(self.layers, self._fields, strict=True):
            self._layer(layer, fields)
        if self.shapes:
            names = [str(value.name) for value in self.graph.inputs]
            raise SurgeryError(f"{self.path}: no input takes the shape for {', '.join(self.shapes)}; it has {names}")
        self.parameters.finish(self.layers)
        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="onnx-surgery")
        self._finish(model)
        self._describe(model)
        return model

    def _layer(self, layer: LayerParameter, fields: Fields) -> None:
        layer.name = layer.name or (layer.top[0] if layer.top else layer.type)
        if layer.type == "Silence":
            for name in layer.bottom:
                self._unread.pop(name, None)
            return
        bottoms = [self._bottom(layer, name) for name in layer.bottom]
        self.op.prefix = f"{layer.name}/"
        context = Context(self, layer, bottoms, fields)
        before = len(self.graph)
        result = self._function(context)(context)
        if result is None:
            raise context.error("the function in `custom` returned nothing; it must return the layer's tops")
        tops = [result] if isinstance(result, ir.Value) else list(result)
        if tops and len(tops) != len(layer.top):
            raise context.error(f"makes {len(tops)} tops, and the definition names {len(layer.top)}")
        for value in tops:
            context.shaped(value, context.dims(value if value.shape is not None else None))
        self._name_node(layer, before, tops)
        for name in layer.bottom:
            self._unread.pop(name, None)
        self._versions.update(layer.top)
        if not tops:
            self._without_value.update(layer.top)
        for name, value in zip(layer.top, tops, strict=False):
            self._tops[name] = value
            self._wanted.setdefault(value, name)
            if value in bottoms or not value.is_graph_input():
                self._unread[name] = value

    def _function(self, context: Context) -> LayerFunction:
        known = find_layer(context.layer.type)
        strict = known is not None and context.layer.type not in DATA_LAYERS  # of those, little is used
        if strict and (name := unknown_field(context.fields, LayerParameter.DESCRIPTOR)):
            raise context.error(f"has a field {name!r}, which Caffe does not know; only a layer of `custom` may")
        function = known or self._custom
        if function is None:
            raise context.error(
                f"no layer of this type is known{nearest(context.layer.type, known_types())}; "
                "supply it with --custom module:function (custom= in Python)"
            )
        return function

    def _bottom(self, layer: LayerParameter, name: str) -> ir.Value:
        if name in self._tops:
            return self._tops[name]
        where = f"{self.path}: layer {layer.name!r} ({layer.type}): bottom {name!r}"
        if name in self._without_value:
            raise SurgeryError(f"{where} is a loss or a measure, of which there is nothing in a model; drop the layer")
        if name in self._makers:
            raise SurgeryError(
                f"{where} is made only later, by layer {self._makers[name]!r}; layers run in the order of the file"
            )
        raise SurgeryError(f"{where} is made by no layer{nearest(name, self._tops)}")

    def _name_node(self, layer: LayerParameter, before: int, tops: Sequence[ir.Value]) -> None:
        """Gives the layer's name to the operator that makes its first top, unless the layer gave it to another.

        All names of operators are different in the end.
        """
        new = list(itertools.islice(reversed(self.graph), len(self.graph) - before))
        named = [node for node in new if node.name == layer.name]
        if not named and tops and (producer := tops[0].producer()) in new:
            named = [producer]
        for node in reversed(new):
            node.name = unique_name(layer.name if node in named else str(node.name), self._node_names)

    def reads(self, top: str) -> int:
        """How many layers read what `top` holds at this layer."""
        return self._reads[top, self._versions[top]]

    def channels_read(self, top: str) -> int | None:
        """How many channels the weights of a convolution that reads `top` are made for."""
        for layer in self.layers:
            blobs = self.source.weights.get(layer.name)
            if layer.type == "Convolution" and top in layer.bottom and blobs and len(blobs[0].shape) > 2:
                return blobs[0].shape[1] * layer.convolution_param.group
        return None

    def first_top(self, value: ir.Value) -> str | None:
        """The first top that `value` was."""
        return self._wanted.get(value)

    def declare_output(self, name: str, value: ir.Value) -> None:
        """Makes `value` an output of the net; its name is `name` where it was no top."""
        self._declared.setdefault(value, self._wanted.get(value, name))

    def defer_output(self, c: Context, op_type: str, name: str = "", **attributes: int) -> None:
        """Makes `op_type` of the first bottom an output, once it is known whether another layer computes it as well.

        Its name is `name`, else "prob", or ``<layer>/prob`` where there are several.
        """
        self._deferred.append((c.layer, c.x, op_type, name, attributes))

    def _activate_losses(self) -> None:
        unnamed = sum(not name for _, _, _, name, _ in self._deferred)
        for layer, x, op_type, name, attributes in self._deferred:
            same = (
                node
                for node in x.consumers()
                if node.op_type == op_type and all(node.attributes.get_int(k, 1) == v for k, v in attributes.items())
            )
            node = next(same, None)
            if node is None:
                value = getattr(self.op, op_type)(x, _name=unique_name(layer.name, self._node_names), **attributes)
                value.shape, value.type = x.shape, ir.TensorType(ir.DataType.FLOAT)
            else:
                value = node.outputs[0]
            self.declare_output(name or ("prob" if unnamed == 1 else f"{layer.name}/prob"), value)

    def add_input(self, name: str, dims: Sequence[Dim]) -> ir.Value:
        """Adds an input of the net; its free dimensions, but for the batch, are its own."""
        known = {str(d.value) for i in self.graph.inputs for d in i.shape or () if not isinstance(d, int)}
        batches = set(self._batches.values())
        dims = [f"{d}_{name}" if isinstance(d, str) and d in known - batches else d for d in dims]
        value = ir.Value(name=self.unique(name), shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.inputs.append(value)
        return value

    def override_shape(self, name: str, shape: Sequence[Dim] | None) -> Sequence[Dim] | None:
        """The shape of input `name`, batch included: the user's, else `shape`, the definition's."""
        key = name if name in self.shapes else ""
        if key not in self.shapes or (shape is not None and len(shape) < 2):
            return shape
        return [shape[0] if shape else 1, *self.shapes.pop(key)]

    def batch_dim(self, size: int, name: str) -> Dim:
        """The batch's dimension of input `name`: "N", and another where an input has another first dimension."""
        if self.batch is not None:
            return self.batch
        if self._recurrent:
            return size
        return self._batches.setdefault(size, "N" if not self._batches else f"N_{name}")

    def batch_size(self, dim: Dim) -> int | None:
        """The size that a batch's dimension has in the definition."""
        return next((size for size, name in self._batches.items() if name == dim), None)

    def unknown_dim(self) -> str:
        """A new name for a dimension of which nothing is known."""
        self._dims += 1
        return f"d{self._dims}"

    def unique(self, name: str) -> str:
        """Returns `name` for a value, with a number behind it where another has it; it is taken from now on."""
        return unique_name(name, self._value_names)

    def _finish(self, model: ir.Model) -> None:
        """Declares the outputs, drops what leads to none, and names values by their tops."""
        self._activate_losses()
        if not self._declared and not self._unread:
            for name, value in self.last_resort:
                self.declare_output(name, value)
        unread = [(name, value) for name, value in self._unread.items() if value not in self._declared]
        taken: set[ir.Value] = set()
        for name, value in [*unread, *((name, value) for value, name in self._declared.items())]:
            if value.is_graph_input() or value.is_initializer() or value in taken:
                dims, value = value.shape, self.op.Identity(value, _name=unique_name(name, self._node_names))
                value.shape, value.type = dims, ir.TensorType(ir.DataType.FLOAT)
                self._wanted[value] = name
            taken.add(value)
            self.graph.outputs.append(value)
            value.name = self.unique(name)
        if not self.graph.outputs:
            raise SurgeryError(f"{self.path}: has no output: no layer makes anything that no other reads")
        RemoveUnusedNodesPass()(model)
        for value in [v for v in self.data if not v.uses()]:
            self.graph.inputs.remove(value)
        self._name_values()

    def _describe(self, model: ir.Model) -> None:
        """Writes how images become the input, from the definition's data layer or the one the net was trained with."""
        layers = {value: layer for value, layer in self.data.items() if value in self.graph.inputs}
        trained = self.source.trained and find_transformation(self.source.trained)
        if not layers and trained and self.graph.inputs:
            layers = {self.graph.inputs[0]: trained}
        for value, layer in layers.items():
            assert value.shape is not None
            dims = [d if isinstance(d, int) else str(d.value) for d in value.shape]
            if how := preprocessing(layer, dims, self.mean_image(layer)):
                set_preprocessing(model, str(value.name), how)

    def mean_image(self, layer: LayerParameter) -> np.ndarray | None:
        """The mean image [C, H, W] that a data layer names, if it is found."""
        name = layer.transform_param.mean_file
        if name not in self._means:
            self._means[name] = find_mean(layer, self.source.folder)
        return self._means[name]

    def _name_values(self) -> None:
        """A top's name goes to what it holds in the end; what it held before a layer ran in place gets two parts."""
        named = set(self.graph.outputs)
        values = [output for node in self.graph for output in node.outputs if output not in named]
        final = {value: name for name, value in self._tops.items() if self._wanted.get(value) == name}
        for value in values:
            if value in final:
                value.name = self.unique(final[value])
        for value in values:
            if value not in final:
                top, node = self._wanted.get(value), value.producer()
                assert node is not None
                value.name = self.unique(f"{top}/{node.name}" if top else str(value.name))


def _count_reads(layers: Sequence[LayerParameter]) -> Counter[tuple[str, int]]:
    """How many layers read each version of each top; a layer that runs in place makes a new version."""
    versions: Counter[str] = Counter()
    reads: Counter[tuple[str, int]] = Counter()
    for layer in layers:
        reads.update((bottom, versions[bottom]) for bottom in layer.bottom)
        versions.update(layer.top)
    return reads
