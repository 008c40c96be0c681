"""Builds the ONNX graph of a Torch7 network, module by module as Torch runs it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from converters.context import unique_name
from converters.options import Dim
from converters.torch7.context import PACKAGES, Context, ModuleFunction, Nested, find_module, known_types
from converters.torch7.inputs import NestedDims, find_dims
from converters.torch7.objects import Tensor, TorchObject
from surgery.emit import Emitter, initializer
from surgery.errors import SurgeryError, nearest
from surgery.io import IR_VERSION, MAX_OPSET

__all__ = ["Builder"]

_MOST_MODULES = 20_000  # the deepest networks have some thousands
_DEEPEST = 100  # containers in containers
_LONGEST = 200  # characters of a name


class Builder:
    """The state of one conversion.

    Args:
        path: The file that errors name.
        root: The network.
        shapes: Input shapes without the batch, by input name; "" for the first input.
        batch: Fixes the batch's size.
        custom: Converts the modules of types that are not registered.
        most: How many numbers all parameters together may have.
    """

    def __init__(
        self,
        path: object,
        root: TorchObject,
        shapes: Mapping[str, Sequence[Dim]],
        batch: int | None,
        custom: ModuleFunction | None,
        most: int,
    ) -> None:
        self.path = path
        self.root = root
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": MAX_OPSET}, name=root.type)
        self.op = Emitter(self.graph)
        self._shapes = dict(shapes)
        self._batch = batch
        self._custom = custom
        self._left = most
        self._active: list[TorchObject] = []
        self._count = 0
        self._dims = 0
        self._shared: dict[tuple[object, ...], ir.Value] = {}
        self._names: Counter[str] = Counter()
        self._value_names: Counter[str] = Counter()

    def build(self) -> ir.Model:
        """Returns the model.

        Raises:
            SurgeryError: A module is unknown, or does not fit what it reads or its parameters.
        """
        self._function(Context(self, self.root, self._name(self.root, ()), (), []))  # before a shape is asked for
        read = self._add_inputs()
        self._declare(list(_flat(self.run(self.root, (), read))))
        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="onnx-surgery")
        RemoveUnusedNodesPass()(model)
        for value in self.graph.inputs:
            if not value.uses():
                raise SurgeryError(f"{self.path}: nothing in the network reads its input {value.name!r}")
        return model

    def _add_inputs(self) -> Nested:
        """Adds the inputs: as many as the modules that read them say, unless shapes are given by name."""
        dims = find_dims(self.root)
        given = [name for name in self._shapes if name]
        if dims is None and len(given) > 1:
            dims = [None] * len(given)
        count = _count(dims)
        numbers = itertools.count(1)

        def add(dims: NestedDims) -> Nested:
            if isinstance(dims, list):
                return [add(each) for each in dims]
            name = "input" if count == 1 else f"input{next(numbers)}"
            return self._add_input(name, dims)

        inputs = add(dims)
        if self._shapes:
            names = [str(value.name) for value in self.graph.inputs]
            raise SurgeryError(f"{self.path}: no input takes the shape for {', '.join(self._shapes)}; it has {names}")
        return inputs

    def _add_input(self, name: str, dims: tuple[Dim, ...] | None) -> ir.Value:
        key = name if name in self._shapes else ""
        given = self._shapes.pop(key, None)
        found: Sequence[Dim] | None = given if given is not None else dims
        if found is None:
            raise SurgeryError(
                f"{self.path}: does not say the shape of its input {name!r}; give it without the batch, as "
                f"--shape {'' if name == 'input' else f'{name}='}3x224x224 (shape= in Python)"
            )
        if any(isinstance(d, int) and d < 1 for d in found):
            raise SurgeryError(f"{self.path}: input {name!r} would have the shape {'x'.join(map(str, found))}")
        batch: Dim = "N" if self._batch is None else self._batch
        value = ir.Value(name=name, shape=ir.Shape([batch, *found]), type=ir.TensorType(ir.DataType.FLOAT))
        self._value_names[name] += 1
        self.graph.inputs.append(value)
        return value

    def run(self, module: TorchObject, path: tuple[str, ...], input: Nested) -> Nested:
        """Converts one module; returns its output."""
        self._count += 1
        if self._count > _MOST_MODULES:
            raise SurgeryError(f"{self.path}: has more than {_MOST_MODULES:,} modules; no Torch network has")
        c = Context(self, module, self._name(module, path), path, input)
        if any(each is module for each in self._active):
            raise c.error("is in itself, which no network is")
        if len(self._active) >= _DEEPEST:
            raise c.error(f"containers lie in each other {_DEEPEST} deep, which in no network they do")
        function = self._function(c)
        self._active.append(module)
        self.op.prefix = f"{c.name}/"
        before = len(self.graph)
        result = function(c)
        self._active.pop()
        if result is None:
            raise c.error("the function in `custom` returned nothing; it must return the module's output")
        for value in _flat(result):
            if value.shape is None:
                c.shaped(value, c.dims())
        self._name_node(c.name, before, next(_flat(result), None))
        return result

    def _function(self, c: Context) -> ModuleFunction:
        type = c.module.type
        function = find_module(type) or self._custom
        if function is None:
            known = type.startswith(tuple(f"{package}." for package in PACKAGES))
            close = nearest(type.rpartition(".")[2], known_types()) if known else ""
            raise c.error(
                f"no module of this type is known{close}; supply it with --custom module:function (custom= in Python)"
            )
        return function

    def _name(self, module: TorchObject, path: tuple[str, ...]) -> str:
        """The name in the file (loadcaffe's, say), else the place in the network and the type."""
        own = module.fields.get("name")
        if isinstance(own, str) and own.isprintable() and 0 < len(own) <= _LONGEST:
            return own
        return ".".join([*path, module.type.rpartition(".")[2]])

    def _name_node(self, name: str, before: int, result: ir.Value | None) -> None:
        """Gives the module's name to the operator that makes its output, unless the module gave it to another.

        All names of operators are different in the end.
        """
        new = list(itertools.islice(reversed(self.graph), len(self.graph) - before))
        new = [node for node in new if "final" not in node.meta]
        named = [node for node in new if node.name == name]
        if not named and result is not None and (producer := result.producer()) in new:
            named = [producer]
        for node in reversed(new):
            node.name = unique_name(name if node in named else str(node.name), self._names)
            node.meta["final"] = True
            for index, output in enumerate(node.outputs):
                output.name = unique_name(f"{node.name}.{index}" if index else node.name, self._value_names)

    def parameter(self, c: Context, tensor: Tensor, role: str, shape: tuple[int, ...]) -> ir.Value:
        """See `Context.parameter`."""
        statistic = role if role in ("mean", "var") else ""  # which training changes in another way
        key = (*tensor.key, shape, statistic)
        if key not in self._shared:
            data = tensor.numpy()
            self._shared[key] = self.add_parameter(
                f"{c.name}.{role}", np.ascontiguousarray(data.reshape(shape), np.float32)
            )
        return self._shared[key]

    def add_parameter(self, name: str, data: np.ndarray) -> ir.Value:
        """Registers an initializer."""
        self._left -= data.size
        if self._left < 0:
            raise SurgeryError(f"{self.path}: its tensors have more numbers than are in the file")
        return initializer(self.graph, unique_name(name, self._value_names), data)

    def unknown_dim(self) -> str:
        """A new name for a dimension of which nothing is known."""
        self._dims += 1
        return f"d{self._dims}"

    def _declare(self, outputs: list[ir.Value]) -> None:
        """Makes these values the outputs."""
        if not outputs:
            raise SurgeryError(f"{self.path}: has no output")
        self.op.prefix = ""
        for index, value in enumerate(outputs, 1):
            if value.is_graph_input() or value.is_initializer() or value in self.graph.outputs:
                dims, value = value.shape, self.op.Identity(value)
                value.shape, value.type = dims, ir.TensorType(ir.DataType.FLOAT)
            value.name = unique_name("output" if len(outputs) == 1 else f"output{index}", self._value_names)
            self.graph.outputs.append(value)


def _flat(nested: Nested) -> Iterator[ir.Value]:
    if isinstance(nested, ir.Value):
        yield nested
    else:
        for each in nested:
            yield from _flat(each)


def _count(dims: NestedDims) -> int:
    return sum(map(_count, dims)) if isinstance(dims, list) else 1
