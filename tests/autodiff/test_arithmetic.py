"""Arithmetic and comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import runtime
from surgery.autodiff import backward, gradient
from tests.autodiff.checks import Operator, check, gradients, spread

pytestmark = pytest.mark.training


def _positive(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape).astype(np.float32)


BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


@pytest.mark.parametrize("op_type", BINARY)
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("symbolic", [False, True])
def test_binary(rng: np.random.Generator, op_type: str, opset: int, symbolic: bool) -> None:
    inputs = [_positive(rng, 2, 3, 4), _positive(rng, 3, 1)]
    builder = not symbolic and op_type != "Pow"  # the training build's builder fails on these
    check(Operator(op_type, inputs, opset=opset, symbolic=symbolic), BINARY[op_type], builder=builder)


@st.composite
def _broadcast(draw: st.DrawFn) -> list[list[int]]:
    full = draw(st.lists(st.integers(1, 3), max_size=4))
    return [[draw(st.sampled_from([1, d])) for d in full[draw(st.integers(0, len(full))) :]] for _ in range(2)]


@given(shapes=_broadcast(), op_type=st.sampled_from(["Add", "Mul", "Div"]), symbolic=st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_broadcast(shapes: list[list[int]], op_type: str, symbolic: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = [_positive(rng, *shape) for shape in shapes]
    check(Operator(op_type, inputs, symbolic=symbolic), BINARY[op_type], builder=False)


def test_dimensions_equal_by_name_are_not_summed(rng: np.random.Generator) -> None:
    names = {0: ["n", 3], 1: ["n", 3]}
    check(Operator("Mul", [_positive(rng, 2, 3), _positive(rng, 2, 3)], symbolic=names), torch.mul)


@pytest.mark.parametrize(
    ("op_type", "expression"),
    [
        ("Sum", lambda *x: sum(x)),
        ("Mean", lambda *x: sum(torch.broadcast_tensors(*x)) / len(x)),
        ("Max", lambda *x: torch.stack(torch.broadcast_tensors(*x)).amax(0)),
        ("Min", lambda *x: torch.stack(torch.broadcast_tensors(*x)).amin(0)),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_several(rng: np.random.Generator, op_type: str, expression: Callable[..., Any], count: int) -> None:
    inputs = np.split(spread(rng, 6, 4), [3, 4])[:count]
    if count > 2:
        inputs[2] = inputs[2][:1, :1]
    check(Operator(op_type, inputs), expression)


@pytest.mark.parametrize(("op_type", "expression"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_equal_operands_share(op_type: str, expression: Callable[..., Any]) -> None:
    a, b = np.array([1, 2, 3], np.float32), np.array([1, 2, 0], np.float32)
    check(Operator(op_type, [a, b]), expression, differences=False, builder=False)


UNARY: dict[str, tuple[Callable[..., Any], float, float]] = {
    "Neg": (torch.neg, -2, 2),
    "Abs": (torch.abs, -2, 2),
    "Reciprocal": (torch.reciprocal, 0.5, 2),
    "Sqrt": (torch.sqrt, 0.5, 2),
    "Exp": (torch.exp, -2, 2),
    "Log": (torch.log, 0.5, 2),
    "Sin": (torch.sin, -2, 2),
    "Cos": (torch.cos, -2, 2),
    "Tan": (torch.tan, -1, 1),
    "Asin": (torch.asin, -0.9, 0.9),
    "Acos": (torch.acos, -0.9, 0.9),
    "Atan": (torch.atan, -2, 2),
    "Sinh": (torch.sinh, -2, 2),
    "Cosh": (torch.cosh, -2, 2),
    "Asinh": (torch.asinh, -2, 2),
    "Acosh": (torch.acosh, 1.2, 3),
    "Atanh": (torch.atanh, -0.9, 0.9),
    "Identity": (lambda x: x, -2, 2),
}


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(rng: np.random.Generator, op_type: str) -> None:
    expression, low, high = UNARY[op_type]
    values = np.linspace(low, high, 24, dtype=np.float32)
    check(Operator(op_type, [rng.permutation(values).reshape(2, 3, 4)]), expression)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0, -1.5])
@pytest.mark.parametrize("trained", [False, True])
def test_power_of_a_constant(rng: np.random.Generator, exponent: float, trained: bool) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3] x) => (float[2, 3] y) <float e = {{{exponent}}}> {{ y = Pow(x, e) }}
    """
    array = _positive(rng, 2, 3)
    names = ["x", "e"] if trained else ["x"]
    model = gradient(ir.from_proto(onnx.parser.parse_model(text)), of="y", wrt=names, weight=1.0)
    # What is trained is no constant: the operators that a constant saves are there.
    assert ("Where" in [node.op_type for node in model.graph]) == trained
    found = runtime.session(model, ["CPUExecutionProvider"]).run([f"gradient/{n}" for n in names], {"x": array})
    x, e = torch.tensor(array, requires_grad=True), torch.tensor(exponent, requires_grad=True)
    expected = torch.autograd.grad((x**e).sum(), [x, e])
    for got, want in zip(found, expected, strict=False):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_power_of_a_whole_number(rng: np.random.Generator) -> None:
    check(Operator("Pow", [_positive(rng, 2, 3), np.array([[2], [3]], np.int64)]), torch.pow, builder=False)


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_power_at_zero(exponent: int) -> None:
    x, e = np.zeros((2, 2), np.float32), np.full((2, 2), exponent, np.float32)
    check(Operator("Pow", [x, e]), torch.pow, differences=False, builder=False)


def test_mod(rng: np.random.Generator) -> None:
    a = np.array([5.3, -5.3, 4.1], np.float32)
    b = np.array([2.0, 2.0, -1.5], np.float32)
    check(Operator("Mod", [a, b], {"fmod": 1}), torch.fmod)


def test_where(rng: np.random.Generator) -> None:
    condition = rng.random((2, 3, 1)) > 0.5
    inputs = [condition, _positive(rng, 3, 4), _positive(rng, 2, 1, 4)]
    check(Operator("Where", inputs), torch.where, builder=False)  # which does not sum over the broadcast axes


@pytest.mark.parametrize("to", [10, 11])
def test_cast_to_another_float(rng: np.random.Generator, to: int) -> None:
    operator = Operator("Cast", [np.round(_positive(rng, 2, 3), 1)], {"to": to})
    check(operator, lambda x: x, differences=False, builder=False, tolerance=2e-3)


@pytest.mark.parametrize("op_type", ["Floor", "Ceil", "Round", "Sign"])
def test_steps_stop_the_gradient(rng: np.random.Generator, op_type: str) -> None:
    graph = Operator(op_type, [_positive(rng, 2)]).model(np.float32).graph
    assert not backward(graph, {graph.outputs[0]: graph.outputs[0]}, list(graph.inputs))


def test_unwanted_gradients_are_not_computed(rng: np.random.Generator) -> None:
    operator = Operator("Mul", [_positive(rng, 2, 3), _positive(rng, 3)], wrt=[0])
    graph = operator.model(np.float32).graph
    backward(graph, {graph.outputs[0]: graph.outputs[0]}, [graph.inputs[0]])
    assert [node.op_type for node in graph] == ["Mul", "Mul"]
    assert list(gradients(operator, {0: np.ones((2, 3), np.float32)})) == [0]
