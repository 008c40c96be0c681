"""The step graph: (batch, targets, learning rate, parameters, state) → (loss, metric, new parameters, new state).

Everything that a training step does is in this one graph: the forward pass with dropout and batch statistics, the loss,
its gradient, the optimizer, the constraints. What training does not change stays an initializer, so that the runtime
folds and fuses the frozen part as it does for inference.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from surgery.autodiff import backward, prepare, why_no_gradient
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.layers import STATISTICS, ancestors, find_output, layers
from surgery.marks import marks
from surgery.training.accumulation import examples_in, means, write_sums
from surgery.training.losses import loss_of, strip_activation
from surgery.training.optimizers import Link, MovingAverage, write_updates
from surgery.training.winograd import minimize_convolutions

__all__ = [
    "Objective",
    "Step",
    "Term",
    "changing_parameters",
    "evaluation_step",
    "free_batch",
    "trainable_parameters",
    "training_step",
]

Objective = Any  # a loss, its name or settings, or a mapping from outputs to these; a mapping with `name` is settings


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


@dataclasses.dataclass(frozen=True)
class Step:
    """A step graph and how to drive it.

    Attributes:
        model: The graph.
        batch: The names of the inputs that take examples.
        terms: What is minimized, output by output.
        measures: The names of the first outputs, scalars: ``loss``, and each term's loss and metric.
        carried: Which input each output feeds in the next step: parameters, running statistics and optimizer state;
            empty for an evaluation.
        initial: The first value of every carried input; weights share the model's memory and are not to be written to.
        weights: Which of them belong to the model: parameters and running statistics.
        averages: The carried input that has a weight's moving average, by the weight's name.
        update: Where gradients are accumulated, the graph that updates the parameters; it carries them, the state and
            the sums, and this one the sums and running statistics.
    """

    model: ir.Model
    batch: list[str]
    terms: list[Term]
    measures: list[str]
    carried: dict[str, str]
    initial: dict[str, np.ndarray]
    weights: list[str]
    averages: dict[str, str] = dataclasses.field(default_factory=dict)
    update: Step | None = None


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
class _Forward:
    model: ir.Model
    op: Emitter
    batch: list[str]
    terms: list[Term]
    measures: dict[str, ir.Value]
    parameters: list[ir.Value]
    statistics: list[ir.Value]


def _forward(
    model: ir.Model,
    objective: Objective,
    output: str | None,
    prefix: str,
    changing: bool,
    others: bool = False,
    predictions: bool = False,
) -> _Forward:
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
    return _Forward(model, op, batch, terms, measures, parameters, statistics)


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


def _training_mode(forward: _Forward, seed: int, runs: int) -> dict[str, ir.Value]:
    """Switches Dropout on, and BatchNormalization to batch statistics where its own are not frozen.

    The runtimes draw a mask from the seed plus the number of a session's runs so far. So a session that goes on after
    `runs` of another draws the masks that the other one would have drawn if its seeds are larger by that (on the CPU;
    CUDA's generator counts otherwise). Seeds go by the operator's name, whatever else is in the graph, and are far
    apart: neighbours would share their masks.

    Returns:
        The running statistics after the step, by the name of those before.
    """
    graph, op = forward.model.graph, forward.op
    running: dict[str, ir.Value] = {}
    trained = set(forward.statistics)
    named: dict[str, int] = {}
    for node in list(graph):
        if node.op_type == "Dropout" and node.domain == "":
            ratio = node.inputs[1] if len(node.inputs) > 1 else None
            node.resize_inputs(3)
            if ratio is None:
                node.replace_input_with(1, op.constant(0.5, ir.DataType.FLOAT))
            node.replace_input_with(2, op.constant(np.array(True)))
            name = str(node.name)
            named[name] = named.get(name, 0) + 1
            entropy = [seed, zlib.crc32(name.encode()), named[name]]
            own = int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 2 | 1
            node.attributes["seed"] = ir.AttrInt64("seed", own + runs)
        elif node.op_type == "BatchNormalization" and node.inputs[3] in trained:
            node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
            node.resize_outputs(3)
            for index in (1, 2):
                before, after = node.inputs[2 + index], node.outputs[index]
                assert before is not None
                after.name = after.name or op.fresh("running")
                after.shape, after.type = before.shape, before.type
                running[before.name or ""] = after
    return running


def training_step(
    model: ir.Model,
    links: Sequence[Link],
    *,
    loss: Objective = "auto",
    output: str | None = None,
    fused: bool = False,
    recompute: bool = False,
    seed: int = 0,
    runs: int = 0,
    counters: Mapping[str, str] | None = None,
    accumulate: bool = False,
    momentum: bool = False,
    average: MovingAverage | None = None,
) -> Step:
    """Builds the step graph that trains `model`, which is left as it is.

    Args:
        model: A model with marks.
        links: The optimizer, from `surgery.training.optimizers.chain`.
        loss: A loss of `surgery.training.losses`, its name or settings; ``auto`` goes by the last activation; for
            several outputs at once, a mapping from their names to these.
        output: The output to train; needed where there are several and `loss` names none.
        fused: Use the kernels of the onnxruntime-training build.
        recompute: Compute activations again in the backward pass instead of keeping them (activation checkpointing).
        seed: Of dropout.
        runs: How many steps have been run before in other sessions, whose dropout this one goes on with.
        counters: The name of the state that counts the steps of a parameter, by the parameter's: for those that join
            a training later. ``step`` for all others.
        accumulate: Only add the gradients up; `Step.update` is the graph that updates the parameters by their mean.
        momentum: Take the momentum with each step, as the learning rate.
        average: Keep a moving average of the weights.

    Raises:
        SurgeryError: Nothing is trainable, or an operator on the way has no gradient.
    """
    forward = _forward(model, loss, output, "step/", changing=True)
    graph, op = forward.model.graph, forward.op
    new = _training_mode(forward, seed, runs)
    if minimize_convolutions(op, forward.parameters):
        infer_shapes(forward.model)
    cost = forward.measures["loss"]
    begin = examples_in(op, forward.batch[0]) if accumulate else op.constant(1.0, ir.DataType.FLOAT)
    gradients = backward(graph, {cost: begin}, forward.parameters, fused=fused, recompute=recompute, emitter=op)
    missing = next((p for p in forward.parameters if p not in gradients), None)
    if missing is not None:
        raise SurgeryError(why_no_gradient(missing, [cost]))
    arrays = {str(p.name): _array(p) for p in forward.parameters}
    how: dict[str, Any] = {"momentum": momentum, "average": average, "counters": counters, "arrays": arrays}
    update = None
    if accumulate:
        sums, empty = write_sums(op, forward.parameters, gradients, begin)
        update = _update_step(forward, links, how)
        new, states = new | sums, update.initial | empty
    else:
        updates = write_updates(op, forward.parameters, gradients, links, **how)
        new, states = new | updates.after, updates.initial
    averages = {name: f"{name}/average" for name in arrays if average is not None}
    step = _finish(forward, _carry(graph, new), states)
    return dataclasses.replace(step, update=update, averages=averages)


def _update_step(forward: _Forward, links: Sequence[Link], how: Mapping[str, Any]) -> Step:
    """The graph (sums of gradients, learning rate, parameters, state) → (new parameters, new state, empty sums)."""
    parameters = [ir.Value(name=p.name, shape=p.shape, type=p.type) for p in forward.parameters]
    for mine, theirs in zip(parameters, forward.parameters, strict=True):
        mine.metadata_props.update(theirs.metadata_props)
    opsets = {"": forward.model.graph.opset_imports[""]}
    graph = ir.Graph(parameters, [], nodes=[], opset_imports=opsets, name="update")
    op = Emitter(graph, "update/")
    gradients, empty = means(op, parameters)
    updates = write_updates(op, parameters, gradients, links, **how)
    carried = _carry(graph, updates.after | empty)
    return Step(ir.Model(graph, ir_version=IR_VERSION), [], [], [], carried, updates.initial, [])


def _carry(graph: ir.Graph, after: Mapping[str, ir.Value]) -> dict[str, str]:
    """Makes what the inputs of these names become outputs; returns the outputs' names by the inputs'."""
    before = {v.name: v for v in graph.inputs}
    for name, value in after.items():
        value.shape, value.type = before[name].shape, before[name].type
        graph.outputs.append(value)
    return {name: value.name or "" for name, value in after.items()}


def evaluation_step(
    model: ir.Model,
    *,
    loss: Objective = "auto",
    output: str | None = None,
    changing: bool = False,
    others: bool = False,
    predictions: bool = False,
) -> Step:
    """Builds the graph that measures `model` as it infers; its inputs are named as `training_step`'s.

    Args:
        model: The model.
        loss: As `training_step` takes it.
        output: The output to measure; needed where there are several and `loss` names none.
        changing: Take what training changes as inputs, to measure a training's present weights.
        others: Compute the model's other outputs as well, behind what is measured.
        predictions: Compute what each term's loss takes as well (logits, where an activation goes with it), in front
            of these.
    """
    return _finish(_forward(model, loss, output, "evaluation/", changing, others, predictions), {}, {})


def _array(parameter: ir.Value) -> np.ndarray:
    assert parameter.const_value is not None
    return parameter.const_value.numpy()


def _finish(forward: _Forward, carried: dict[str, str], states: dict[str, np.ndarray]) -> Step:
    model = forward.model
    weights = [*forward.parameters, *forward.statistics]
    initial = {p.name or "": _array(p) for p in weights} | states
    for value in weights:
        value.const_value = None
    model.ir_version = IR_VERSION
    RemoveUnusedNodesPass()(model)
    return Step(
        model,
        forward.batch,
        forward.terms,
        list(forward.measures),
        carried,
        initial,
        [p.name or "" for p in weights],
    )
