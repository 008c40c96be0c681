"""The forward pass of a step: a copy of the model, with the loss and the metric of what is trained behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from surgery.autodiff import prepare
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import infer_shapes
from surgery.layers import STATISTICS, ancestors, find_output, layers
from surgery.marks import marks
from surgery.training.losses import Objective, loss_of, strip_activation

__all__ = ["Forward", "Term", "changing_parameters", "forward_pass", "free_batch", "trainable_parameters"]


@dataclasses.dataclass(frozen=True)
class Term:
    """The loss of one output.

    Attributes:
        output: The output's name.
        target: The name of the input that takes its targets.
        loss: What it costs.
        units: The dimensions of one prediction, the batch's left out.
    """

    output: str
    target: str
    loss: Any
    units: tuple[int | None, ...]


def trainable_parameters(model: ir.Model) -> list[ir.Value]:
    """Returns the parameters that training changes by gradients, in graph order; running statistics are not among them.

    Raises:
        SurgeryError: There are none, or one is not float32.
    """
    found = _parameters(model, statistics=False)
    if not found:
        raise SurgeryError("every parameter is frozen: there is nothing to train; unfreeze a layer or replace the head")
    other = next((p for p in found if p.dtype != ir.DataType.FLOAT), None)
    if other is not None:
        raise SurgeryError(
            f"parameter {other.name!r} is {other.dtype}; training takes float32: train that model, then cast it"
        )
    return found


def changing_parameters(model: ir.Model) -> list[ir.Value]:
    """Returns the parameters and running statistics that training changes."""
    return [*_parameters(model, statistics=False), *_parameters(model, statistics=True)]


def _parameters(model: ir.Model, statistics: bool) -> list[ir.Value]:
    """The running statistics, or the other parameters, that are not frozen; each once."""
    return list(
        dict.fromkeys(
            parameter
            for layer in layers(model)
            for role, parameter in layer.parameters.items()
            if (role in STATISTICS) == statistics and not marks(parameter).frozen
        )
    )


@dataclasses.dataclass
class Forward:
    model: ir.Model
    op: Emitter
    batch: list[str]
    terms: list[Term]
    logits: list[ir.Value]
    measures: dict[str, ir.Value]
    parameters: list[ir.Value]
    statistics: list[ir.Value]


def forward_pass(
    model: ir.Model,
    objective: Objective,
    output: str | None,
    prefix: str,
    changing: bool,
    others: bool = False,
    predictions: bool = False,
) -> Forward:
    """Copies `model` and writes the loss behind its logits; with `changing`, what training changes becomes inputs.

    With `predictions`, the logits stay as outputs, behind what is measured; with `others`, the outputs that are not
    trained, behind these.
    """
    model = model.clone()
    InlinePass()(model)
    graph = model.graph
    if not graph.inputs:
        raise SurgeryError("the model has no input that takes examples")
    batch = [str(i.name) for i in graph.inputs]
    named = (
        objective
        if isinstance(objective, Mapping) and "name" not in objective
        else {find_output(model, output).name or "": objective}
    )
    ends = {name: list(graph.outputs).index(find_output(model, name)) for name in named}
    losses = {name: _strip(graph, graph.outputs[index], named[name]) for name, index in ends.items()}
    free_batch(graph)
    kept = [o for i, o in enumerate(graph.outputs) if i not in ends.values()] if others else []
    graph.outputs[:] = [*(graph.outputs[i] for i in ends.values()), *kept]
    RemoveUnusedNodesPass()(model)
    parameters = trainable_parameters(model) if changing else []
    statistics = _parameters(model, statistics=True) if changing else []
    if changing:
        prepare(model, parameters)
    else:
        infer_shapes(model)
    for value in [*parameters, *statistics]:
        graph.initializers.pop(value.name or "", None)
        graph.inputs.append(value)
    op = Emitter(graph, prefix)
    logits = dict(zip(ends, graph.outputs, strict=False))
    terms, measures = _write_terms(op, logits, losses)
    graph.outputs[:] = [*measures.values(), *(logits.values() if predictions else ()), *kept]
    infer_shapes(model)
    return Forward(model, op, batch, terms, list(logits.values()), measures, parameters, statistics)


def _strip(graph: ir.Graph, end: ir.Value, loss: Any) -> Any:
    """Takes the activation that the loss is written for away from in front of `end`; returns the loss."""
    if loss == "auto":
        return loss_of(strip_activation(graph, end) or "mean_squared_error")
    chosen = loss_of(loss)
    strip_activation(graph, end, chosen.name)
    return chosen


def _write_terms(
    op: Emitter, logits: dict[str, ir.Value], losses: dict[str, Any]
) -> tuple[list[Term], dict[str, ir.Value]]:
    """Emits each output's loss and metric, and the weighted sum of the losses."""
    terms: list[Term] = []
    measures: dict[str, ir.Value] = {}
    costs: list[ir.Value] = []
    alone = len(logits) == 1
    for name, value in logits.items():
        loss = losses[name]
        if value.shape is None:
            raise SurgeryError(f"the output {name!r} has no known shape{_first_unknown(op.graph, value)}")
        if not len(value.shape) or isinstance(value.shape[0], int):
            raise SurgeryError(
                f"the output {name!r} has shape {value.shape} whatever the batch: the network was exported for one "
                "batch size; apply the pass `set_batch: N`, or export it with a dynamic batch dimension"
            )
        if loss.name == "cross_entropy" and len(value.shape) > 2 and all(d == 1 for d in value.shape[2:]):
            value = _flat(op, value)
        assert value.shape is not None
        dtype, shape = loss.target_of(value)
        target = ir.val("target" if alone else f"target/{name}", dtype, shape)
        op.graph.inputs.append(target)
        cost, metric = (op.Identity(v) for v in loss.write(op, value, target))  # two outputs, also of one value
        costs.append(cost if loss.weight == 1 else op.Mul(cost, loss.weight))
        measures |= (
            {"loss": cost, loss.metric: metric}
            if alone
            else {
                f"{name}_loss": cost,
                f"{name}_{loss.metric}": metric,
            }
        )
        units = tuple(d if isinstance(d, int) else None for d in value.shape[1:])
        terms.append(Term(name, str(target.name), loss, units))
    if alone:
        measures["loss"] = costs[0]
    else:
        measures = {"loss": op.Sum(*costs)} | measures
    for scalar in measures.values():
        scalar.shape, scalar.dtype = ir.Shape(()), ir.DataType.FLOAT
    return terms, measures


def _first_unknown(graph: ir.Graph, value: ir.Value) -> str:
    """Says which operator is the first, on the way to `value`, whose shape cannot be inferred."""
    needed = ancestors([value])
    for node in graph:
        if node in needed and any(o.shape is None and (o.uses() or o is value) for o in node.outputs):
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            return (
                f": none can be inferred behind {kind} {node.name!r}; replace it with operators of ONNX or cut it off"
            )
    return "; declare it in the file"


def _flat(op: Emitter, logits: ir.Value) -> ir.Value:
    """[N, C, 1, 1] as [N, C]."""
    assert logits.shape is not None
    flat = op.Flatten(logits)
    flat.shape, flat.dtype = ir.Shape(logits.shape[:2]), logits.dtype
    return flat


def free_batch(graph: ir.Graph) -> None:
    """Makes the first dimension of every input ``batch``, any number."""
    for value in graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *value.shape[1:]])
    for node in graph:
        for out in node.outputs:  # inferred anew; a fixed batch would stay otherwise
            if out.shape is not None and len(out.shape):
                out.shape = None
