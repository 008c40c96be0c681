"""Writing operators into a graph: `Emitter` turns method calls into nodes and Python numbers into constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Emitter", "initializer"]

Operand = ir.Value | np.ndarray | float | int | None

_BOOL = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"}
_LIKE_INPUT = {"Where": 1, "CastLike": 1, "OneHot": 2}  # what does not have the type of input 0
_INT64 = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"}


def _result(op_type: str, values: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.DataType | None:
    """The type of an operator's first output, None where it does not follow from a glance."""
    if op_type in _BOOL:
        return ir.DataType.BOOL
    if op_type in _INT64:
        return ir.DataType.INT64
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type in ("ConstantOfShape", "Constant"):
        return attributes["value"].dtype if "value" in attributes else None
    source = values[_LIKE_INPUT.get(op_type, 0)] if values else None
    return None if source is None else source.dtype


def initializer(graph: ir.Graph, name: str, data: np.ndarray) -> ir.Value:
    """Makes `data` an initializer of `graph`; nothing in it may have that name."""
    value = ir.val(name, const_value=ir.tensor(data, name=name))
    graph.register_initializer(value)
    return value


class Emitter:
    """Appends operators to a graph.

    ``op.Mul(x, 2.0)`` appends a Mul and returns its output; ``op.MaxPool(x, kernel_shape=[2, 2], _outputs=2)`` returns
    a list. Arrays and numbers become initializers, one for equal contents; a Python float takes the type of the first
    operand that has one. ``_domain`` and ``_name`` are the operator's, other keywords its attributes (None: absent).

    Args:
        graph: The graph to write into.
        prefix: What the names of all values and operators start with, so that they clash with nothing.
    """

    def __init__(self, graph: ir.Graph, prefix: str = "") -> None:
        self.graph = graph
        self.prefix = prefix
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._count = 0
        self._taken = {n.name for n in graph} | {o.name for n in graph for o in n.outputs}
        self._taken |= {v.name for v in graph.inputs} | set(graph.initializers)

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def emit(*inputs: Operand, **kwargs: Any) -> Any:
            return self._emit(op_type, inputs, **kwargs)

        return emit

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[Operand],
        *,
        _domain: str = "",
        _outputs: int = 1,
        _name: str | None = None,
        **attributes: Any,
    ) -> Any:
        dtype = next((v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype is not None), ir.DataType.FLOAT)
        values = [v if v is None or isinstance(v, ir.Value) else self.constant(v, dtype) for v in inputs]
        node = ir.node(
            op_type,
            values,
            {k: v for k, v in attributes.items() if v is not None},
            domain=_domain,
            num_outputs=_outputs,
            name=_name or self.fresh(op_type),
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}.{index}" if _outputs > 1 else node.name
        if not _domain:
            if (result := _result(op_type, values, attributes)) is not None:
                node.outputs[0].dtype = result
        else:
            self.graph.opset_imports.setdefault(_domain, 1)
        self.graph.append(node)
        return list(node.outputs) if _outputs > 1 else node.outputs[0]

    def fresh(self, stem: str) -> str:
        """Returns a name that nothing in the graph has."""
        while True:
            self._count += 1
            name = f"{self.prefix}{stem}_{self._count}"
            if name not in self._taken:
                return name

    def constant(self, data: np.ndarray | float | int | Sequence[int], dtype: ir.DataType | None = None) -> ir.Value:
        """Returns an initializer that holds `data`.

        Args:
            data: An array as it is; a Python float (or an int, where `dtype` is a float type) as a scalar of `dtype`;
                a sequence of ints as int64.
            dtype: The type of a Python number.
        """
        if isinstance(data, np.ndarray | np.generic):
            array = np.asarray(data)
        elif isinstance(data, float | int) and dtype is not None:
            array = np.asarray(data, dtype.numpy())
        else:
            array = np.asarray(data, np.int64 if not isinstance(data, float) else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = initializer(self.graph, self.fresh("constant"), array)
        return self._constants[key]
