"""The step graph: (batch, targets, learning rate, parameters, state) → (loss, metric, new parameters, new state).

Everything that a training step does is in this one graph: the forward pass with dropout and batch statistics, the loss,
its gradient, the optimizer, the constraints. What training does not change stays an initializer, so that the runtime
folds and fuses the frozen part as it does for inference.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.autodiff import backward, why_no_gradient
from surgery.data import Arrays
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.training.accumulation import examples_in, means, write_sums
from surgery.training.forward import Forward, Term, forward_pass
from surgery.training.in_place import overwritable, waits
from surgery.training.losses import Objective
from surgery.training.optimizers import Link, MovingAverage, write_updates
from surgery.training.shards import add_up, divide, gradient_outputs, share_input
from surgery.training.winograd import minimize_convolutions

__all__ = ["Step", "Term", "evaluation_step", "training_step"]


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
        statistics: Which of these are running statistics.
        averages: The carried input that has a weight's moving average, by the weight's name.
        update: Where gradients are accumulated, the graph that updates the parameters; it carries them, the state and
            the sums, and this one the sums and running statistics. Where batches are divided, it reads the gradients
            of all shards.
        shards: Among how many threads the examples of a batch are divided; this graph is then that of one of them.
        gradients: The names of the outputs that have the gradients, where batches are divided, by the parameter's.
    """

    model: ir.Model
    batch: list[str]
    terms: list[Term]
    measures: list[str]
    carried: dict[str, str]
    initial: dict[str, np.ndarray]
    weights: list[str]
    statistics: list[str] = dataclasses.field(default_factory=list)
    averages: dict[str, str] = dataclasses.field(default_factory=dict)
    update: Step | None = None
    shards: int = 1
    gradients: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers gradients change."""
        trained = set(self.weights) - set(self.statistics)
        return sum(math.prod(v.shape.numpy()) for v in self.model.graph.inputs if v.name in trained and v.shape)

    def arrays(self, examples: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """The arrays of a batch, by the names of the inputs that take them."""
        found = {name: examples[name] if isinstance(examples, Mapping) else examples for name in self.batch}
        for term in self.terms:
            found[term.target] = targets[term.output] if isinstance(targets, Mapping) else targets
        return found

    @functools.cached_property
    def overwritable(self) -> set[str]:
        """Which carried inputs may have their next value written over them."""
        graph = self.model.graph
        return overwritable(graph, _batch(graph, self.batch, self.terms), self.carried)


def _batch(graph: ir.Graph, batch: Sequence[str], terms: Sequence[Term]) -> list[ir.Value]:
    """The inputs that take examples and targets."""
    return [v for v in graph.inputs if v.name in {*batch, *(term.target for term in terms)}]


def _training_mode(forward: Forward, seed: int, runs: int) -> dict[str, ir.Value]:
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
    batch_size: int = 1,
    threads: int = 1,
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
        batch_size: How many examples a batch has, as a rule.
        threads: Among how many threads its examples may be divided, where that is faster (`surgery.training.shards`).

    Raises:
        SurgeryError: Nothing is trainable, or an operator on the way has no gradient.
    """
    forward = forward_pass(model, loss, output, "step/", changing=True)
    graph, op = forward.model.graph, forward.op
    shards = 1 if accumulate or recompute else divide(forward, batch_size, threads)
    new = _training_mode(forward, seed, runs)
    if minimize_convolutions(op, forward.parameters):
        infer_shapes(forward.model)
    cost = forward.measures["loss"]
    if shards > 1:
        begin = share_input(op)
    else:
        begin = examples_in(op, forward.batch[0]) if accumulate else op.constant(1.0, ir.DataType.FLOAT)
    gradients = backward(graph, {cost: begin}, forward.parameters, fused=fused, recompute=recompute, emitter=op)
    missing = next((p for p in forward.parameters if p not in gradients), None)
    if missing is not None:
        raise SurgeryError(why_no_gradient(missing, [cost]))
    arrays = {str(p.name): _array(p) for p in forward.parameters}
    how: dict[str, Any] = {"momentum": momentum, "average": average, "counters": counters, "arrays": arrays}
    update, outputs = None, {}
    if shards > 1:
        outputs = gradient_outputs(op, {p: gradients[p] for p in forward.parameters})
        update = _update_step(forward, links, how, shards)
        states = update.initial
    elif accumulate:
        sums, empty = write_sums(op, forward.parameters, gradients, begin)
        update = _update_step(forward, links, how)
        new, states = new | sums, update.initial | empty
    else:
        late = waits(op, {p: gradients[p] for p in forward.parameters}, _batch(graph, forward.batch, forward.terms))
        updates = write_updates(op, forward.parameters, gradients, links, waits=late, **how)
        new, states = new | updates.after, updates.initial
    averages = {name: f"{name}/average" for name in arrays if average is not None}
    carried = _carry(graph, new)
    graph.outputs.extend(outputs.values())
    step = _finish(forward, carried, states)
    names = {name: str(value.name) for name, value in outputs.items()}
    return dataclasses.replace(step, update=update, averages=averages, shards=shards, gradients=names)


def _update_step(forward: Forward, links: Sequence[Link], how: Mapping[str, Any], shards: int = 1) -> Step:
    """The graph (gradients, learning rate, parameters, state) → (new parameters, new state).

    The gradients are those of the shards or, with one, the sums of several batches, which it empties.
    """
    parameters = [ir.Value(name=p.name, shape=p.shape, type=p.type) for p in forward.parameters]
    for mine, theirs in zip(parameters, forward.parameters, strict=True):
        mine.metadata_props.update(theirs.metadata_props)
    opsets = {"": forward.model.graph.opset_imports[""]}
    graph = ir.Graph(parameters, [], nodes=[], opset_imports=opsets, name="update")
    op = Emitter(graph, "update/")
    gradients, empty = (add_up(op, parameters, shards), {}) if shards > 1 else means(op, parameters)
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
    return _finish(forward_pass(model, loss, output, "evaluation/", changing, others, predictions), {}, {})


def _array(parameter: ir.Value) -> np.ndarray:
    assert parameter.const_value is not None
    return parameter.const_value.numpy()


def _finish(forward: Forward, carried: dict[str, str], states: dict[str, np.ndarray]) -> Step:
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
        [p.name or "" for p in forward.statistics],
    )
