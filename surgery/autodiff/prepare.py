"""Makes a graph differentiable: functions, control flow and operators without a rule become operators with one."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from surgery.autodiff.backward import differentiable, registered
from surgery.autodiff.constants import fold_shapes
from surgery.autodiff.opset import raise_opset
from surgery.autodiff.sequences import SEQUENCE_OPERATORS, resolve_sequence
from surgery.autodiff.unroll import Splicer, inline_if, unroll_loop, unroll_scan
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes

__all__ = ["prepare"]

_SMALL = 1024  # numbers in a constant that a function's body may depend on


def prepare(model: ir.Model, wrt: Iterable[ir.Value], of: Iterable[ir.Value] | None = None) -> None:
    """Rewrites, in place, what lies between `wrt` and `of` so that `backward` can differentiate it.

    Model-local functions are inlined everywhere, and so are the branches of each If that are always taken. On the way
    from `wrt` to `of`, Loop and Scan are unrolled, elements of sequences become plain tensors, and an operator that has
    no rule, but that ONNX defines by a function, is replaced by that function's body. Shapes are inferred, and what
    follows from known ones is worked out. Values keep their names.

    Args:
        model: A model.
        wrt: What to differentiate by.
        of: What to differentiate; by default the outputs.

    Raises:
        SurgeryError: A Loop, Scan or If on the way depends on data; the message names it.
    """
    InlinePass()(model)
    raise_opset(model.graph)
    sources = {str(v.name) for v in wrt}
    ends = {str(v.name) for v in (model.graph.outputs if of is None else of)}
    infer_shapes(model)
    while fold_shapes(model.graph, sources) or _rewrite(model.graph, sources, ends):
        infer_shapes(model)


def _rewrite(graph: ir.Graph, sources: set[str], ends: set[str]) -> bool:
    """Rewrites what can be at first sight; what it was replaced by may need rewriting as well."""
    splicer = Splicer(graph, sources)
    needed = _needed(graph, ends)
    wanted = {v for v in [*graph.inputs, *graph.initializers.values()] if v.name in sources}
    changed = False
    rules = registered()
    for node in list(graph):
        wanted.update(o for o in node.outputs if o.name in sources)
        if node.op_type == "If" and not node.domain and inline_if(splicer, node):
            changed = True
            continue
        if node not in needed or not _on_the_way(node, wanted):
            continue
        if _replace(splicer, node, rules):
            changed = True
            wanted.update(splicer.latest)
        else:
            wanted.update(node.outputs)
    return changed


def _replace(splicer: Splicer, node: ir.Node, rules: frozenset[str]) -> bool:
    """Replaces an operator that has no rule, if that can be done; returns whether it was."""
    if node.domain:
        return False
    if node.op_type == "If":
        assert node.inputs[0] is not None
        raise SurgeryError(
            f"If {node.name!r} cannot be differentiated: its condition {node.inputs[0].name!r} depends on data; freeze "
            f"every layer up to it (freeze: {{until: {node.name}}}) or cut it off"
        )
    if node.op_type == "Loop":
        unroll_loop(splicer, node)
    elif node.op_type == "Scan":
        unroll_scan(splicer, node)
    elif node.op_type in SEQUENCE_OPERATORS:
        return resolve_sequence(splicer, node)
    elif node.op_type in rules or not _has_body(node):
        return False
    else:
        _expand(splicer, node)
    return True


def _reads(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """What an operator reads; what its subgraphs take from outside counts as input −1."""
    found = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            inner = [v for n in body.all_nodes() for v in n.inputs if v is not None]
            found += [(-1, v) for v in [*inner, *body.outputs]]
    return found


def _on_the_way(node: ir.Node, wanted: set[ir.Value]) -> bool:
    return any(v in wanted and differentiable(node, i) for i, v in _reads(node))


def _needed(graph: ir.Graph, names: set[str]) -> set[ir.Node]:
    """The operators that the values of these names depend on."""
    needed: set[ir.Node] = set()
    stack = [n for n in graph if any(o.name in names for o in n.outputs)]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(p for _, v in _reads(node) if (p := v.producer()) is not None)
    return needed


def _schema(node: ir.Node) -> onnx.defs.OpSchema:
    version = node.graph.opset_imports.get("", 1) if node.graph is not None else 1
    return onnx.defs.get_schema(node.op_type, version)


def _has_body(node: ir.Node) -> bool:
    try:
        schema = _schema(node)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _expand(splicer: Splicer, node: ir.Node) -> None:
    """Puts the body of the function that ONNX defines `node` by in its place (onnx.inliner)."""
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        inner = None
        if value is not None:
            inner = ir.Value(name=f"x{index}", shape=value.shape, type=value.type)
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.size <= _SMALL:
                inner.const_value = ir.tensor(tensor.numpy(), name=inner.name)
        inputs.append(inner)
    alone = ir.node(node.op_type, inputs, num_outputs=len(node.outputs), name=node.op_type)
    alone.attributes.update(node.attributes)
    for name, attribute in _schema(node).attributes.items():  # the inliner does not know the default ones
        if name not in node.attributes and attribute.default_value.type:
            alone.attributes[name] = ir.from_proto(attribute.default_value)
    for index, (inner, outer) in enumerate(zip(alone.outputs, node.outputs, strict=True)):
        inner.name = f"y{index}" if outer.name else ""
        inner.type, inner.shape = outer.type, outer.shape
    present = [v for v in inputs if v is not None]
    results = [o for o in alone.outputs if o.name]
    version = splicer.graph.opset_imports[""]
    graph = ir.Graph(
        present,
        results,
        nodes=[alone],
        initializers=[v for v in present if v.const_value is not None],
        opset_imports={"": version},
        name="one",
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    inlined = onnx.inliner.inline_selected_functions(proto, [("", node.op_type)], inline_schema_functions=True)
    body = ir.from_proto(inlined).graph
    values = splicer.insert(node, body, [v for v in node.inputs if v is not None])
    given = iter(values)
    splicer.replace(node, [next(given) if o.name else o for o in node.outputs])
