"""The three graphs that onnxruntime's on-device training API runs.

How the API drives them (onnxruntime 1.19, orttraining/orttraining/training_api/module.cc and optimizer.cc): inputs
that are named like parameters of the checkpoint get those; ``<parameter>_grad.accumulation.buffer`` gets its
gradient's buffer, to which an InPlaceAccumulatorV2 adds, or which it overwrites where ``lazy_reset_grad`` is true; all
other inputs are the caller's, in their order. Outputs that end in ``_grad.accumulation.out`` are not handed to the
caller. The optimizer's inputs have fixed names, and it has exactly one operator of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.artifacts.plans import AdamW, Plan, Sgd, check_decay, plan_of
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION
from surgery.layers import find_output, layers
from surgery.marks import marks
from surgery.training.losses import Objective
from surgery.training.optimizers import Updating, project
from surgery.training.step import Step, evaluation_step, training_step

__all__ = ["evaluation_model", "move_frozen", "optimizer_model", "order_inputs", "training_model", "user_inputs"]

_MICROSOFT = "com.microsoft"
_BUFFER, _DONE, _RESET = "_grad.accumulation.buffer", "_grad.accumulation.out", "lazy_reset_grad"
_TAKEN = (_BUFFER, _DONE, "_grad", _RESET)  # how an input that takes examples must not end


def training_model(
    model: ir.Model,
    optimizer: AdamW | Sgd,
    plans: dict[str, Plan],
    *,
    loss: Objective,
    output: str | None,
    fused: bool,
    seed: int,
) -> Step:
    """The graph that adds each gradient into its buffer; fills `plans`, by the parameters' names in the model."""
    gradients: dict[str, ir.Value] = {}

    def note(u: Updating, gradient: ir.Value) -> ir.Value:
        """Stands where an optimizer's links stand; the update behind it is thrown away."""
        name = str(u.parameter.name)
        gradients[name], plans[name] = gradient, plan_of(u.parameter, optimizer)
        return gradient

    step = training_step(model, [note], loss=loss, output=output, fused=fused, seed=seed)
    check_decay(plans, optimizer)
    for name in user_inputs(step):
        if name.endswith(_TAKEN):
            raise SurgeryError(f"onnxruntime would take the input {name!r} for a gradient's; rename it")
    graph = step.model.graph
    inputs = {str(v.name): v for v in graph.inputs}
    after = {str(v.name): v for v in graph.outputs}
    op = Emitter(graph, "device/")
    reset = ir.val(_RESET, ir.DataType.BOOL, (1,))
    always = op.constant(np.array([True]))
    done: list[ir.Value] = []

    def write(target: ir.Value, value: ir.Value, overwrite: ir.Value) -> None:
        flag = op.InPlaceAccumulatorV2(target, value, overwrite, _domain=_MICROSOFT)
        flag.name, flag.shape, flag.dtype = f"{flag.name}{_DONE}", ir.Shape([1]), ir.DataType.BOOL
        done.append(flag)

    for name, plan in plans.items():
        parameter, gradient = inputs[name], gradients[name]
        used = _use(op, parameter, plan)
        if decay := plan.decay + plan.marks.l2:
            gradient = op.Add(gradient, op.Mul(used, decay))
        if plan.marks.l1:
            gradient = op.Add(gradient, op.Mul(op.Sign(used), plan.marks.l1))
        if plan.gradient_factor != 1:
            gradient = op.Mul(gradient, plan.gradient_factor)
        buffer = ir.val(f"{plan.stored}{_BUFFER}", ir.DataType.FLOAT, parameter.shape)
        graph.inputs.append(buffer)
        write(buffer, gradient, reset)
        if plan.marks.constraint is not None:
            write(parameter, used if plan.divisor == 1 else op.Mul(used, 1 / plan.divisor), always)
    for name in step.weights:
        if name not in plans:  # running statistics; the CPU's kernel happens to write them in place itself
            write(inputs[name], after[step.carried[name]], always)
    graph.inputs.append(reset)
    graph.outputs[:] = [graph.outputs[0], *done]
    _finish(step.model, ["loss"])
    return step


def user_inputs(step: Step) -> list[str]:
    """The names of the inputs that the caller fills: examples, then targets."""
    return [*step.batch, *(term.target for term in step.terms)]


def _use(op: Emitter, parameter: ir.Value, plan: Plan) -> ir.Value:
    """Puts what a kept parameter stands for in its place: its multiple, within its constraint."""
    uses = list(parameter.uses())
    used = parameter
    if plan.divisor != 1:
        parameter.name = plan.stored
        used = op.Mul(used, plan.divisor)
    if plan.marks.constraint is not None:
        used = project(op, used, plan.marks.constraint)
    if used is not parameter:
        used.shape, used.type = parameter.shape, parameter.type
        for node, index in uses:
            node.replace_input_with(index, used)
    return used


def evaluation_model(
    model: ir.Model, training: Step, plans: dict[str, Plan], *, loss: Objective, output: str | None
) -> ir.Model:
    """What is measured and the model's outputs; these are what can be exported for inference."""
    model = model.clone()
    trained = [term.output for term in training.terms]
    whole = {f"{name}/whole": name for name in trained}
    for name in trained:
        _branch(model, find_output(model, name))
    step = evaluation_step(model, loss=loss, output=output or trained[0], others=True)
    graph = step.model.graph
    for value in [*graph.inputs, *(o for node in graph for o in node.outputs)]:
        if value.name in trained:
            value.name = f"{value.name}/measured"
    for value in graph.outputs:
        value.name = whole.get(str(value.name), value.name)
    op = Emitter(graph, "device/")
    _to_inputs(graph, training.weights)
    for value in list(graph.inputs):
        if value.name in plans:
            _use(op, value, plans[value.name])
    _finish(step.model, training.measures)
    return step.model


def _branch(model: ir.Model, output: ir.Value) -> None:
    """Adds an output that equals `output` and takes its name, whose last activation may be taken away.

    `output` stays whole and is called ``<name>/whole``.
    """
    graph, name = model.graph, str(output.name)
    weighted = {node for layer in layers(model) if layer.parameters for node in layer.nodes}
    chain: list[ir.Node] = []
    value = output
    while (node := value.producer()) is not None and node not in weighted and len(node.outputs) == 1:
        changing = [v for v in node.inputs if v is not None and not v.is_initializer()]
        if changing != [node.inputs[0]]:
            break
        chain.append(node)
        value = changing[0]
    op = Emitter(graph, "device/branch/")
    for node in reversed(chain):
        fresh = op.fresh(node.op_type)
        copy = ir.Node(node.domain, node.op_type, [value, *node.inputs[1:]], list(node.attributes.values()), name=fresh)
        graph.append(copy)
        value = copy.outputs[0]
        value.name, value.shape, value.type = fresh, node.outputs[0].shape, node.outputs[0].type
    if value is output:
        value = op.Identity(output)
        value.shape, value.type = output.shape, output.type
    output.name, value.name = f"{name}/whole", name
    graph.outputs.append(value)


def _to_inputs(graph: ir.Graph, names: Iterable[str]) -> None:
    """Makes initializers inputs."""
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)


def move_frozen(model: ir.Model, *graphs: ir.Graph) -> dict[str, np.ndarray]:
    """Makes the frozen parameters that all of `graphs` use inputs; returns what they hold."""
    found = {}
    for layer in layers(model):
        for parameter in layer.parameters.values():
            name, tensor = str(parameter.name), parameter.const_value
            shared = all(name in graph.initializers for graph in graphs)
            if shared and marks(parameter).frozen and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                found[name] = np.array(tensor.numpy())
                for graph in graphs:
                    _to_inputs(graph, [name])
    return found


def order_inputs(graph: ir.Graph, names: list[str]) -> None:
    """Leaves the inputs `names`, in this order, which must be the same in all graphs, and those of gradients."""
    inputs = {str(v.name): v for v in graph.inputs}
    rest = [v for name, v in inputs.items() if name.endswith((_BUFFER, _RESET))]
    graph.inputs[:] = [*(inputs[name] for name in names), *rest]


def optimizer_model(optimizer: AdamW | Sgd, opset: int) -> ir.Model:
    """One operator that updates all parameters in place."""
    one = ir.Shape([1])
    tensors = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    rate, step = ir.val("learning_rate", ir.DataType.FLOAT, one), ir.val("step", ir.DataType.INT64, one)
    params, gradients, first, second = (
        ir.val(name, type=tensors) for name in ("params", "gradients", "first_order_moments", "second_order_moments")
    )
    if isinstance(optimizer, Sgd):
        inputs = [rate, step, params, gradients, first]  # the API asks for moments in any case
        node = ir.node("SGDOptimizerV2", [rate, params, gradients], domain=_MICROSOFT)
    else:
        inputs = [rate, step, params, gradients, first, second]
        settings = {
            "alpha": optimizer.beta1,
            "beta": optimizer.beta2,
            "epsilon": optimizer.epsilon,
            "weight_decay": optimizer.weight_decay,
            "adam_mode": 0,  # PyTorch's
            "correct_bias": 1,
        }
        node = ir.node("AdamWOptimizer", inputs, settings, domain=_MICROSOFT)
    updated = node.outputs[0]
    updated.name, updated.shape, updated.type = "updated", one, ir.TensorType(ir.DataType.BOOL)
    graph = ir.Graph(inputs, [updated], nodes=[node], opset_imports={"": opset, _MICROSOFT: 1}, name="optimizer")
    return ir.Model(graph, ir_version=IR_VERSION)


def _finish(model: ir.Model, names: list[str]) -> None:
    """Sorts, removes what nothing uses, and names the first outputs where the names are free."""
    graph = model.graph
    graph.sort()
    RemoveUnusedNodesPass()(model)
    for weight in graph.initializers.values():  # the API exports no model whose weights lie in another file
        if isinstance(weight.const_value, ir.ExternalTensor):
            weight.const_value = ir.tensor(weight.const_value.numpy(), name=weight.name)
    taken = {v.name for v in graph.inputs} | set(graph.initializers) | {o.name for n in graph for o in n.outputs}
    for value, name in zip(graph.outputs, names, strict=False):
        if name not in taken:
            value.name = name
