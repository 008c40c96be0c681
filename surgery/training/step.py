"""The step graph: (batch, targets, learning rate, parameters, state) → (loss, metric, new parameters, new state).

Everything that a training step does is in this one graph: the forward pass with dropout and batch statistics, the loss,
its gradient, the optimizer, the constraints. What training does not change stays an initializer, so that the runtime
folds and fuses the frozen part as it does for inference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from surgery.autodiff import backward, prepare, why_no_gradient
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest
from surgery.io import IR_VERSION, infer_shapes
from surgery.layers import STATISTICS, find_output, layers
from surgery.marks import marks
from surgery.training.losses import LOSSES, Loss, strip_activation
from surgery.training.optimizers import Link, Updating, update

__all__ = ["Step", "evaluation_step", "training_step", "trainable_parameters"]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step graph and how to drive it.

    Attributes:
        model: The graph.
        loss: What is minimized.
        batch: The names of the inputs that take examples.
        target: The name of the input that takes targets.
        units: The dimensions of one prediction, the batch's left out.
        carried: Which input each output feeds in the next step: parameters, running statistics and optimizer state;
            empty for an evaluation.
        initial: The first value of every carried input.
        weights: Which of them belong to the model: parameters and running statistics.
    """

    model: ir.Model
    loss: Loss
    batch: str
    target: str
    units: tuple[int | None, ...]
    carried: dict[str, str]
    initial: dict[str, np.ndarray]
    weights: list[str]


def trainable_parameters(model: ir.Model) -> list[ir.Value]:
    """Returns the parameters that training changes by gradients, in graph order; running statistics are not among them.

    Raises:
        SurgeryError: There are none.
    """
    found = _parameters(model, statistics=False)
    if not found:
        raise SurgeryError("every parameter is frozen: there is nothing to train; unfreeze a layer or replace the head")
    return found


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
    loss: Loss
    units: tuple[int | None, ...]
    cost: ir.Value
    metric: ir.Value
    target: ir.Value
    parameters: list[ir.Value]
    statistics: list[ir.Value]


def _forward(
    model: ir.Model, loss: str, output: str | None, prefix: str, changing: bool, others: bool = False
) -> _Forward:
    """Copies `model` and writes the loss behind its logits; with `changing`, what training changes becomes inputs.

    With `others`, the outputs that are not trained stay, behind the loss and the metric.
    """
    model = model.clone()
    InlinePass()(model)
    graph = model.graph
    end = find_output(model, output)
    index = list(graph.outputs).index(end)
    fitting = strip_activation(graph, end, loss)
    name = fitting or "mean_squared_error" if loss == "auto" else loss
    if name not in LOSSES:
        raise SurgeryError(f"no loss is named {name!r}{nearest(name, LOSSES)}; there are auto, {', '.join(LOSSES)}")
    chosen = LOSSES[name]
    if len(graph.inputs) != 1:
        names = ", ".join(str(i.name) for i in graph.inputs)
        raise SurgeryError(f"training takes one input so far; the model has {len(graph.inputs)} ({names})")
    _free_batch(graph)
    kept = [o for i, o in enumerate(graph.outputs) if i != index] if others else []
    graph.outputs[:] = [graph.outputs[index], *kept]
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
    logits = graph.outputs[0]
    if chosen.name == "cross_entropy" and logits.shape is not None and len(logits.shape) > 2:
        logits = _flat(op, logits)
    if logits.shape is None or not len(logits.shape) or isinstance(logits.shape[0], int):
        raise SurgeryError(
            f"the output {end.name!r} has shape {logits.shape} whatever the batch: the network was exported for one "
            "batch size; export it with a dynamic batch dimension"
        )
    units = tuple(d if isinstance(d, int) else None for d in logits.shape[1:])
    shape = ir.Shape(["batch"]) if chosen.target == ir.DataType.INT64 else logits.shape
    target = ir.val("target", chosen.target, shape)
    graph.inputs.append(target)
    cost, metric = chosen.write(op, logits, target)
    for value in (cost, metric):
        value.shape, value.dtype = ir.Shape(()), ir.DataType.FLOAT
    graph.outputs[:] = [cost, metric, *kept]
    infer_shapes(model)
    return _Forward(model, op, chosen, units, cost, metric, target, parameters, statistics)


def _flat(op: Emitter, logits: ir.Value) -> ir.Value:
    """[N, C, 1, 1] as [N, C]."""
    assert logits.shape is not None
    if any(d != 1 for d in logits.shape[2:]):
        raise SurgeryError(f"cross_entropy needs one prediction for each image; {logits.name!r} has {logits.shape}")
    flat = op.Flatten(logits)
    flat.shape, flat.dtype = ir.Shape(logits.shape[:2]), logits.dtype
    return flat


def _free_batch(graph: ir.Graph) -> None:
    """Makes the first dimension of the input the batch's, any number."""
    for value in graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *value.shape[1:]])
    for node in graph:
        for out in node.outputs:  # inferred anew; a fixed batch would stay otherwise
            if out.shape is not None and len(out.shape):
                out.shape = None


def _training_mode(forward: _Forward, seed: int) -> dict[str, ir.Value]:
    """Switches Dropout on, and BatchNormalization to batch statistics where its own are not frozen.

    Returns:
        The running statistics after the step, by the name of those before.
    """
    graph, op = forward.model.graph, forward.op
    running: dict[str, ir.Value] = {}
    trained = set(forward.statistics)
    # The runtimes draw a mask from the seed plus the number of runs so far: neighbouring seeds would share their masks.
    seeds = [int(s) >> 2 | 1 for s in np.random.SeedSequence(seed).generate_state(len(graph))]
    count = 0
    for node in list(graph):
        if node.op_type == "Dropout" and node.domain == "":
            ratio = node.inputs[1] if len(node.inputs) > 1 else None
            node.resize_inputs(3)
            if ratio is None:
                node.replace_input_with(1, op.constant(0.5, ir.DataType.FLOAT))
            node.replace_input_with(2, op.constant(np.array(True)))
            node.attributes["seed"] = ir.AttrInt64("seed", seeds[count])
            count += 1
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
    loss: str = "auto",
    output: str | None = None,
    fused: bool = False,
    seed: int = 0,
) -> Step:
    """Builds the step graph that trains `model`, which is left as it is.

    Args:
        model: A model with marks.
        links: The optimizer, from `surgery.training.optimizers.chain`.
        loss: A name of `losses.LOSSES`; ``auto`` goes by the last activation.
        output: The output to train; needed where there are several.
        fused: Use the kernels of the onnxruntime-training build.
        seed: Of dropout.

    Raises:
        SurgeryError: Nothing is trainable, or an operator on the way has no gradient.
    """
    forward = _forward(model, loss, output, "step/", changing=True)
    graph, op = forward.model.graph, forward.op
    new = _training_mode(forward, seed)
    states: dict[str, np.ndarray] = {}
    rate = ir.val("learning_rate", ir.DataType.FLOAT, ())
    count = ir.val("step", ir.DataType.FLOAT, ())
    graph.inputs.append(rate)
    one = op.constant(1.0, ir.DataType.FLOAT)
    gradients = backward(graph, {forward.cost: one}, forward.parameters, fused=fused, emitter=op)
    next_count = op.Add(count, one)
    counted = False

    for parameter in forward.parameters:
        if parameter not in gradients:
            raise SurgeryError(why_no_gradient(parameter, [forward.cost]))

        def state(slot: str, parameter: ir.Value = parameter) -> ir.Value:
            name = f"{parameter.name}/{slot}"
            value = ir.val(name, parameter.dtype, parameter.shape)
            graph.inputs.append(value)
            states[name] = np.zeros_like(_array(parameter))
            return value

        u = Updating(op, parameter, marks(parameter), rate, next_count, state)
        new[parameter.name or ""] = update(links, u, gradients[parameter])
        new.update({f"{parameter.name}/{slot}": value for slot, value in u.new_state.items()})
        counted = counted or bool(next_count.uses())
    if counted:
        graph.inputs.append(count)
        states["step"] = np.zeros((), np.float32)
        new["step"] = next_count

    carried = {}
    before = {v.name: v for v in graph.inputs}
    for name, value in new.items():
        value.shape, value.type = before[name].shape, before[name].type
        graph.outputs.append(value)
        carried[name] = value.name or ""
    return _finish(forward, carried, states)


def evaluation_step(
    model: ir.Model, *, loss: str = "auto", output: str | None = None, changing: bool = False, others: bool = False
) -> Step:
    """Builds the graph that measures `model` as it infers; its inputs are named as `training_step`'s.

    Args:
        model: The model.
        loss: A name of `losses.LOSSES`; ``auto`` goes by the last activation.
        output: The output to measure; needed where there are several.
        changing: Take what training changes as inputs, to measure a training's present weights.
        others: Compute the model's other outputs as well, behind the loss and the metric.
    """
    return _finish(_forward(model, loss, output, "evaluation/", changing, others), {}, {})


def _array(parameter: ir.Value) -> np.ndarray:
    assert parameter.const_value is not None
    return np.array(parameter.const_value.numpy())


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
        forward.loss,
        str(model.graph.inputs[0].name),
        str(forward.target.name),
        forward.units,
        carried,
        initial,
        [p.name or "" for p in weights],
    )
