"""Functions, control flow, and operators that ONNX defines by a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from surgery import runtime
from surgery.autodiff.api import gradient
from surgery.autodiff.backward import registered
from surgery.autodiff.prepare import prepare
from surgery.errors import SurgeryError
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import training_step

pytestmark = pytest.mark.training

CPU = ["CPUExecutionProvider"]
X = np.array([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], np.float32)
W = np.array([0.5, -1.0, 2.0], np.float32)


def _model(
    body: str, version: int = 17, functions: str = "", inputs: str = "float[2, 3] x", constants: str = ""
) -> ir.Model:
    text = f"""
    <ir_version: 8, opset_import: ["" : {version}, "own" : 1]>
    net ({inputs}) => (float[m, n] y)
    <float[3] w = {{0.5, -1, 2}}{constants}>
    {{ {body} }}
    {functions}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def _check(model: ir.Model, expression: Callable[..., torch.Tensor], **feeds: np.ndarray) -> ir.Model:
    """The model's output and its gradient by x and w are those of a PyTorch expression."""
    made = gradient(model, of="y", wrt=["x", "w"], weight=1.0)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    session = runtime.session(made, CPU, threads=1)
    y, dx, dw = session.run(["y", "gradient/x", "gradient/w"], {"x": X, **feeds})
    x, w = torch.tensor(X, requires_grad=True), torch.tensor(W, requires_grad=True)
    expected = expression(x, w)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5)
    for found, value in zip((dx, dw), torch.autograd.grad(expected.sum(), [x, w]), strict=True):
        np.testing.assert_allclose(found, value.numpy(), rtol=1e-5)
    return made


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def test_functions_are_inlined() -> None:
    functions = """
    <domain: "own", opset_import: ["" : 17, "own" : 1]> square (a) => (b) { b = Mul(a, a) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]> fourth (a) => (c) { b = own.square(a) c = own.square(b) }
    """
    _check(_model("h = Mul(x, w) y = own.fourth(h)", functions=functions), lambda x, w: (x * w) ** 4)


@pytest.mark.parametrize("size", [2, 3])
def test_if_goes_by_a_known_shape(size: int) -> None:
    body = f"""
        shape = Shape(x)
        last = Constant<value_int: int = 1>()
        dim = Gather(shape, last)
        wanted = Constant<value_int: int = {size}>()
        same = Equal(dim, wanted)
        h = If (same) <
            then_branch = yes () => (float[2, 3] t) {{ t = Mul(x, w) }},
            else_branch = no () => (float[2, 3] e) {{ f = Mul(x, x) e = Add(f, w) }}
        >
        y = Identity(h)
    """
    expression = (lambda x, w: x * w) if size == 3 else (lambda x, w: x * x + w)
    made = _check(_model(body, inputs="float[n, 3] x"), expression)
    assert "If" not in _operators(made)


def test_if_on_data_is_an_error_on_the_way_only() -> None:
    body = """
        zero = Constant<value_float: float = 0.0>()
        sum = ReduceSum<keepdims: int = 0>({source})
        flag = Greater(sum, zero)
        h = If (flag) <
            then_branch = yes () => (float[2, 3] t) {{ t = Mul({source}, {source}) }},
            else_branch = no () => (float[2, 3] e) {{ e = Identity({source}) }}
        >
        y = Mul(h, w)
    """
    with pytest.raises(SurgeryError, match=r"If '.*' cannot be differentiated: its condition 'flag' depends on data"):
        gradient(_model(body.format(source="x")), of="y", wrt=["x"], weight=1.0)
    made = gradient(_model(body.format(source="x")), of="y", wrt=["w"], weight=1.0)
    session = runtime.session(made, CPU, threads=1)
    np.testing.assert_allclose(session.run(["gradient/w"], {"x": X})[0], (X * X).sum(0), rtol=1e-6)


LOOP = """
    trips = Constant<value_int: int = 3>()
    going = Constant<value_ints: ints = [1]>()
    bool_ = Cast<to: int = 9>(going)
    axis = Constant<value_ints: ints = [0]>()
    on = Squeeze(bool_, axis)
    last, all = Loop (trips, on, x) <
        body = round (int64 i, bool cond, float[2, 3] state) => (bool next, float[2, 3] new, float[2, 3] out) {{
            number = Cast<to: int = 1>(i)
            scaled = Mul(state, w)
            new = Add(scaled, number)
            out = Mul(new, new)
            {goes_on}
        }}
    >
    collected = ReduceSum<keepdims: int = 0>(all, axis)
    y = Add(last, collected)
"""


def _looped(rounds: int) -> Callable[..., torch.Tensor]:
    def expression(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for i in range(rounds):
            x = x * w + i
            total = total + x * x
        return x + total

    return expression


@pytest.mark.parametrize(
    ("goes_on", "rounds"),
    [
        ("next = Identity(cond)", 3),
        ("one = Constant<value_int: int = 1>() next = Less(i, one)", 2),
    ],
)
def test_loop_is_unrolled(goes_on: str, rounds: int) -> None:
    made = _check(_model(LOOP.format(goes_on=goes_on)), _looped(rounds))
    assert "Loop" not in _operators(made)


def test_by_the_output_of_an_if() -> None:
    """Once the If is inlined, another value has its output's name."""
    body = """
        yes = Cast<to: int = 9>(one)
        h = If (yes) <
            then_branch = then () => (float[2, 3] t) { t = Mul(x, w) },
            else_branch = else () => (float[2, 3] e) { e = Add(x, w) }
        >
        y = CenterCropPad<axes: ints = [1]>(h, two)
    """
    model = _model(body, 18, constants=", int64 one = {1}, int64[1] two = {2}")
    made = gradient(model, of="y", wrt=["h"], weight=1.0)
    session = runtime.session(made, CPU, threads=1)
    np.testing.assert_array_equal(session.run(["gradient/h"], {"x": X})[0], [[1, 1, 0], [1, 1, 0]])


def test_loop_on_data_is_an_error() -> None:
    goes_on = (
        "zero = Constant<value_float: float = 0.0>() s = ReduceSum<keepdims: int = 0>(new) next = Greater(s, zero)"
    )
    with pytest.raises(SurgeryError, match=r"Loop '.*' cannot be differentiated: whether it goes on, 'next', depends"):
        gradient(_model(LOOP.format(goes_on=goes_on)), of="y", wrt=["x"], weight=1.0)
    body = LOOP.format(goes_on="next = Identity(cond)").replace("trips = Constant<value_int: int = 3>()", "")
    with pytest.raises(SurgeryError, match=r"how often it runs, 'trips', depends on data"):
        gradient(_model(body, inputs="float[2, 3] x, int64 trips"), of="y", wrt=["x"], weight=1.0)


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scan_is_unrolled(back: int, axis: int) -> None:
    size = (3, 2)[axis]
    body = f"""
        start = ConstantOfShape<value = float[1] {{1}}>(shape)
        last, rows = Scan<num_scan_inputs = 1, scan_input_axes: ints = [{axis}], scan_input_directions: ints = [{back}],
                          scan_output_axes: ints = [{axis}], scan_output_directions: ints = [{back}],
            body = step (float[{size}] state, float[{size}] row) => (float[{size}] new, float[{size}] out) {{
                grown = Add(state, row)
                new = Mul(grown, row)
                out = Sub(grown, row)
            }}
        > (start, x)
        y = Mul(rows, w)
    """
    model = _model(body, constants=f", int64[1] shape = {{{size}}}")

    def expression(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        rows, state = [], torch.ones(size)
        parts = list(x.unbind(axis))
        for row in reversed(parts) if back else parts:
            grown = state + row
            rows.append(grown - row)
            state = grown * row
        return torch.stack(rows[::-1] if back else rows, axis) * w

    assert "Scan" not in _operators(_check(model, expression))


def test_scan_of_unknown_length_is_an_error() -> None:
    body = """
        last, y = Scan<num_scan_inputs = 1,
            body = step (float[3] state, float[3] row) => (float[3] new, float[3] out) {
                new = Add(state, row)
                out = Identity(new)
            }
        > (w, x)
    """
    with pytest.raises(SurgeryError, match=r"Scan '.*' cannot be differentiated: the length of 'x' is unknown"):
        gradient(_model(body, inputs="float[n, 3] x"), of="y", wrt=["x"], weight=1.0)


@pytest.mark.parametrize(
    ("made", "expression"),
    [
        ("s = SplitToSequence<axis = 1>(h, two) y = SequenceAt(s, zero)", lambda h: h[:, :2]),
        ("s = SplitToSequence<axis = 1>(h, two) y = SequenceAt(s, last)", lambda h: h[:, 2:]),
        ("s = SplitToSequence<axis = 1>(h, sizes) y = SequenceAt(s, last)", lambda h: h[:, 1:]),
        ("s = SplitToSequence<axis = 1>(h) y = SequenceAt(s, last)", lambda h: h[:, 2:]),
        (
            "s = SplitToSequence<axis = 0, keepdims = 0>(h) y = ConcatFromSequence<axis = 1, new_axis = 1>(s)",
            lambda h: h.T,
        ),
        ("s = SequenceConstruct(h, x) y = ConcatFromSequence<axis = 1>(s)", "construct"),
        (
            "e = SequenceEmpty() a = SequenceInsert(e, x) s = SequenceInsert(a, h, zero) y = SequenceAt(s, zero)",
            lambda h: h,
        ),
        ("a = SequenceConstruct(x, h, x) s = SequenceErase(a, zero) y = SequenceAt(s, zero)", lambda h: h),
    ],
)
def test_sequences_are_resolved(made: str, expression: Any) -> None:
    constants = ", int64 zero = {0}, int64 last = {-1}, int64 two = {2}, int64[2] sizes = {1, 2}"
    model = _model(f"h = Mul(x, w) {made}", constants=constants)

    def whole(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * w, x], 1) if expression == "construct" else expression(x * w)

    assert not any("Sequence" in op_type for op_type in _operators(_check(model, whole)))


def test_a_sequence_on_data_is_an_error() -> None:
    """What is computed from a parameter is no constant, either."""
    best = "best = ArgMax<axis = 0, keepdims = 0>(w)"
    body = f"h = Mul(x, w) s = SplitToSequence<axis = 1>(h) {best} y = SequenceAt(s, best)"
    with pytest.raises(SurgeryError, match="no gradient is known for SequenceAt"):
        gradient(_model(body), of="y", wrt=["w"], weight=1.0)


def test_parameters_of_a_loop_are_shared() -> None:
    body = LOOP.format(goes_on="next = Identity(cond)")
    model = _model(body)
    loop = next(n for n in model.graph if n.op_type == "Loop")
    inner = loop.attributes["body"].as_graph()
    own = ir.val("scale", const_value=ir.tensor(W, name="scale"))
    inner.register_initializer(own)
    for node in inner:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "w":
                node.replace_input_with(index, own)
    prepare(model, [model.graph.inputs[0]])
    assert "scale" in model.graph.initializers
    made = gradient(model, of="y", wrt=["scale"], weight=1.0)
    x, w = torch.tensor(X), torch.tensor(W, requires_grad=True)
    expected = torch.autograd.grad(_looped(3)(x, w).sum(), w)[0]
    session = runtime.session(made, CPU, threads=1)
    np.testing.assert_allclose(session.run(["gradient/scale"], {"x": X})[0], expected.numpy(), rtol=1e-5)


def test_an_operator_that_onnx_defines_by_a_function_is_expanded() -> None:
    assert "CenterCropPad" not in registered()
    body = "h = Mul(x, w) y = CenterCropPad<axes: ints = [1]>(h, two)"
    _check(_model(body, 18, constants=", int64[1] two = {2}"), lambda x, w: (x * w)[:, :2])


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Celu": F.celu,
    "Elu<alpha = 0.5>": lambda h: F.elu(h, 0.5),
    "Gelu": F.gelu,
    "HardSigmoid": lambda h: (0.2 * h + 0.5).clamp(0, 1),
    "LogSoftmax": lambda h: h.log_softmax(-1),
    "Mish": F.mish,
    "ReduceLogSumExp": lambda h: h.logsumexp((0, 1), True),
    "Selu": F.selu,
    "Shrink<bias = 0.1, lambd = 0.1>": lambda h: F.softshrink(h, 0.1),
    "Softsign": F.softsign,
    "ThresholdedRelu<alpha = 0.2>": lambda h: F.threshold(h, 0.2, 0.0),
}


@pytest.mark.parametrize("call", FUNCTIONS)
def test_bodies_give_what_rules_give(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that do have a rule, without it; attributes that are left out have the values that ONNX says."""
    op_type = call.partition("<")[0]
    rest = registered() - {op_type}
    monkeypatch.setattr(sys.modules[prepare.__module__], "registered", lambda: rest)
    made = _check(_model(f"h = Mul(x, w) y = {call}(h)", 20), lambda x, w: FUNCTIONS[call](x * w))
    assert op_type not in _operators(made)


def test_cross_entropy_is_expanded() -> None:
    body = 'h = Mul(x, w) y = SoftmaxCrossEntropyLoss<reduction: string = "none">(h, labels)'
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 3] x, int64[n] labels) => (float[n] y) <float[3] w = {{0.5, -1, 2}}> {{ {body} }}
    """
    labels = np.array([2, 0])
    _check(
        ir.from_proto(onnx.parser.parse_model(text)),
        lambda x, w: torch.nn.functional.cross_entropy(x * w, torch.tensor(labels), reduction="none"),
        labels=labels,
    )


def test_what_is_not_on_the_way_stays() -> None:
    body = """
        h = CenterCropPad<axes: ints = [1]>(x, three)
        y = Mul(h, w)
    """
    model = _model(body, 18, constants=", int64[1] three = {3}")
    prepare(model, [model.graph.initializers["w"]])
    assert _operators(model) == ["CenterCropPad", "Mul"]


def test_ranks_behind_arithmetic_with_shapes_are_known() -> None:
    body = """
        shape = Shape(x)
        rank = Shape(shape)
        last = Sub(rank, one)
        lead = Slice(shape, zero, last)
        target = Concat<axis: int = 0>(lead, three)
        h = Reshape(x, target)
        picked = Gather<axis: int = -1>(h, order)
        y = Mul(picked, w)
    """
    constants = ", int64[1] zero = {0}, int64[1] one = {1}, int64[1] three = {3}, int64[3] order = {2, 0, 0}"
    model = _model(body, inputs="float[n, 3] x", constants=constants)
    _check(model, lambda x, w: x[:, [2, 0, 0]] * w)


def test_training_inlines_and_unrolls() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    net (float[n, 3] x) => (float[n, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, int64 trips = {2}> {
        h = own.layer(x, w)
        y = Loop (trips, "", h) <
            body = round (int64 i, bool cond, float[n, 3] state) => (bool next, float[n, 3] new) {
                new = Tanh(state)
                next = Identity(cond)
            }
        >
    }
    <domain: "own", opset_import: ["" : 17]> layer (a, b) => (c) { c = MatMul(a, b) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    training = Training(training_step(model, chain(Sgd(momentum=0.0)), loss="mean_squared_error"), CPU)
    targets = np.full((2, 3), 0.5, np.float32)
    x, w = torch.tensor(X), torch.arange(1.0, 10.0).reshape(3, 3).requires_grad_()
    expected = []
    for _ in range(3):
        loss = ((torch.tanh(torch.tanh(x @ w)) - torch.tensor(targets)) ** 2).mean()
        w.data -= 0.1 * torch.autograd.grad(loss, w)[0]
        expected.append(loss.item())
    np.testing.assert_allclose([training.run(X, targets, 0.1)[0] for _ in range(3)], expected, rtol=1e-5)


def test_training_names_what_stops_a_gradient() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 3] x) => (float[n, 3] y)
    <float[3, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
        h = MatMul(x, v)
        rounded = Round(h)
        y = MatMul(rounded, w)
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(
        SurgeryError, match=r"'v' would get no gradient: Round '.*', between it and .*, has no derivative"
    ):
        training_step(model, chain(Sgd()), loss="mean_squared_error")


def _names(model: ir.Model) -> list[Any]:
    return [o.name for n in model.graph for o in n.outputs]


def test_names_stay_unique_and_those_of_replaced_outputs_stay() -> None:
    model = _model(LOOP.format(goes_on="next = Identity(cond)"))
    prepare(model, [model.graph.inputs[0]])
    names = _names(model)
    assert len(names) == len(set(names))
    assert {"last", "all", "y"} <= set(names)
