"""LSTM, GRU and RNN against PyTorch's own, and against a step-by-step expression for what PyTorch's lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from surgery.errors import SurgeryError
from tests.autodiff.checks import Operator, check, gradients

pytestmark = pytest.mark.training

T, N, FEATURES, H = 4, 3, 2, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Tensor = torch.Tensor


FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "Affine": lambda a, alpha, beta: alpha * a + beta,
    "Elu": lambda a, alpha, _: torch.where(a > 0, a, alpha * torch.expm1(a)),
    "HardSigmoid": lambda a, alpha, beta: (alpha * a + beta).clamp(0, 1),
    "LeakyRelu": lambda a, alpha, _: torch.nn.functional.leaky_relu(a, alpha),
    "Relu": lambda a, *_: torch.relu(a),
    "ScaledTanh": lambda a, alpha, beta: alpha * torch.tanh(beta * a),
    "Sigmoid": lambda a, *_: torch.sigmoid(a),
    "Softplus": lambda a, *_: torch.nn.functional.softplus(a),
    "Softsign": lambda a, *_: torch.nn.functional.softsign(a),
    "Tanh": lambda a, *_: torch.tanh(a),
    "ThresholdedRelu": lambda a, alpha, _: torch.where(a > alpha, a, torch.zeros_like(a)),
}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _functions(op_type: str, attributes: dict[str, Any]) -> list[Callable[[Tensor], Tensor]]:
    """The activation functions of the first direction; parameters are the test's or the operators' own defaults."""
    defaults = {"HardSigmoid": (0.2, 0.5), "LeakyRelu": (0.01, 0), "Affine": (1, 0)}
    alphas, betas = (list(attributes.get(f"activation_{k}", [])) for k in ("alpha", "beta"))
    found = []
    for index, name in enumerate((attributes.get("activations") or USUAL[op_type])[: len(USUAL[op_type])]):
        alpha, beta = defaults.get(name, (1, 1))
        if alphas and name not in ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"):
            alpha = alphas.pop(0)
        if betas and name in ("Affine", "HardSigmoid", "ScaledTanh"):
            beta = betas.pop(0)
        bound = attributes.get("clip", np.inf) if index < 2 else np.inf  # the runtimes do not bound LSTM's cell
        found.append(lambda a, f=FUNCTIONS[name], p=(alpha, beta), bound=bound: f(a.clamp(-bound, bound), *p))
    return found


def _cell(op_type: str, attributes: dict[str, Any], peephole: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """One step, as the operator's specification has it: (x, h, c, W, R, Wb, Rb) → (h, c)."""
    functions = _functions(op_type, attributes)

    def lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
        sigmoid, tanh, out = functions
        i, o, f, g = (x @ w.T + h @ r.T + wb + rb).chunk(4, -1)
        p = torch.zeros(3 * H) if peephole is None else peephole
        p_i, p_o, p_f = p.chunk(3)
        i = sigmoid(i + p_i * c)
        f = 1 - i if attributes.get("input_forget") else sigmoid(f + p_f * c)
        c = f * c + i * tanh(g)
        return sigmoid(o + p_o * c) * out(c), c

    def gru(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
        (a_z, a_r, a_n), (w_z, w_r, w_n), (b_z, b_r, b_n) = (x @ w.T + wb).chunk(3, -1), r.chunk(3), rb.chunk(3)
        sigmoid, tanh = functions
        z, reset = sigmoid(a_z + h @ w_z.T + b_z), sigmoid(a_r + h @ w_r.T + b_r)
        if attributes.get("linear_before_reset"):
            n = tanh(a_n + reset * (h @ w_n.T + b_n))
        else:
            n = tanh(a_n + (reset * h) @ w_n.T + b_n)
        return (1 - z) * n + z * h, c

    def rnn(x: Tensor, h: Tensor, c: Tensor, w: Tensor, r: Tensor, wb: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
        return functions[0](x @ w.T + h @ r.T + wb + rb), c

    return {"LSTM": lstm, "GRU": gru, "RNN": rnn}[op_type]


def _expression(op_type: str, attributes: dict[str, Any], through: list[int]) -> Callable[..., list[Tensor]]:
    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h_0: Tensor | None = None,
        c_0: Tensor | None = None,
        p: Tensor | None = None,
    ) -> list[Tensor]:
        direction = attributes.get("direction", "forward")
        ys, hs, cs = [], [], []
        for d in range(2 if direction == "bidirectional" else 1):
            backwards = direction == "reverse" or d == 1
            cell = _cell(op_type, attributes, None if p is None else p[d])
            size = GATES[op_type] * H
            wb, rb = b[d].split(size) if b is not None else (torch.zeros(size), torch.zeros(size))
            rows, last_h, last_c = [], [], []
            for n in range(N):  # each sequence by itself, only as long as it is
                length = T if lengths is None else int(lengths[n])
                h = torch.zeros(H, dtype=x.dtype) if h_0 is None else h_0[d, n]
                c = torch.zeros(H, dtype=x.dtype) if c_0 is None else c_0[d, n]
                outputs = [torch.zeros(H, dtype=x.dtype)] * T
                for t in reversed(range(length)) if backwards else range(length):
                    h, c = cell(x[t, n], h, c, w[d], r[d], wb, rb)
                    outputs[t] = h
                rows.append(torch.stack(outputs))
                last_h.append(h)
                last_c.append(c)
            ys.append(torch.stack(rows, 1))
            hs.append(torch.stack(last_h))
            cs.append(torch.stack(last_c))
        results = [torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)]
        return [results[i] for i in through]

    return run


def _operator(
    op_type: str,
    rng: np.random.Generator,
    attributes: dict[str, Any],
    *,
    bias: bool = True,
    lengths: list[int] | None = None,
    initial: bool = True,
    peepholes: bool = False,
    through: list[int] | None = None,
    symbolic: Any = False,
    opset: int = 17,
) -> tuple[Operator, list[int]]:
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates, lstm = GATES[op_type], op_type == "LSTM"

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    inputs: list[np.ndarray | None] = [
        normal(T, N, FEATURES),
        normal(directions, gates * H, FEATURES),
        normal(directions, gates * H, H),
    ]
    inputs.append(normal(directions, 2 * gates * H) if bias else None)
    inputs.append(None if lengths is None else np.array(lengths, np.int32))
    inputs.append(normal(directions, N, H) if initial else None)
    if lstm:
        inputs.append(normal(directions, N, H) if initial else None)
        inputs.append(normal(directions, 3 * H) if peepholes else None)
    while inputs[-1] is None:
        inputs.pop()
    through = through or ([0, 1, 2] if lstm else [0, 1])
    operator = Operator(
        op_type,
        inputs,
        {"hidden_size": H, **attributes},
        opset=opset,
        outputs=3 if lstm else 2,
        through=through,
        symbolic=symbolic,
    )
    return operator, through


CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"input_forget": 1}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
    ("RNN", {"activations": ["Relu"]}),
]


def _prove(operator: Operator, expression: Callable[..., Any]) -> None:
    """With differences in float32, the only type of the runtimes' LSTM and GRU, and none across kinks."""
    differences = not ({"activations", "clip"} & set(operator.attributes))
    check(operator, expression, differences=differences, double=operator.op_type == "RNN")


def _attributes(attributes: dict[str, Any], direction: str) -> dict[str, Any]:
    result = {**attributes, "direction": direction}
    if direction == "bidirectional":
        result |= {k: v * 2 for k, v in attributes.items() if isinstance(v, list)}
    return result


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op_type", "attributes"), CASES)
@pytest.mark.parametrize("lengths", [None, [4, 2, 3]])
def test_directions(
    rng: np.random.Generator, op_type: str, attributes: dict[str, Any], direction: str, lengths: list[int] | None
) -> None:
    attributes = _attributes(attributes, direction)
    operator, through = _operator(op_type, rng, attributes, lengths=lengths)
    _prove(operator, _expression(op_type, attributes, through))


@pytest.mark.parametrize(("op_type", "attributes"), CASES)
def test_without_optional_inputs(rng: np.random.Generator, op_type: str, attributes: dict[str, Any]) -> None:
    operator, through = _operator(op_type, rng, attributes, bias=False, initial=False, opset=13)
    _prove(operator, _expression(op_type, attributes, through))


@pytest.mark.parametrize("through", [[0], [1], [2]])
@pytest.mark.parametrize(("op_type", "attributes"), CASES)
def test_some_outputs(rng: np.random.Generator, op_type: str, attributes: dict[str, Any], through: list[int]) -> None:
    if through == [2] and op_type != "LSTM":
        return  # it has two outputs
    attributes = _attributes(attributes, "bidirectional")
    operator, through = _operator(op_type, rng, attributes, through=through, lengths=[2, 4, 1])
    _prove(operator, _expression(op_type, attributes, through))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_peepholes(rng: np.random.Generator, direction: str) -> None:
    attributes = {"direction": direction}
    operator, through = _operator("LSTM", rng, attributes, peepholes=True, lengths=[4, 2, 3])
    _prove(operator, _expression("LSTM", attributes, through))


@pytest.mark.parametrize(("op_type", "attributes"), CASES)
def test_unknown_lengths(rng: np.random.Generator, op_type: str, attributes: dict[str, Any]) -> None:
    operator, through = _operator(op_type, rng, attributes, initial=False, symbolic={0: ["time", "batch", FEATURES]})
    _prove(operator, _expression(op_type, attributes, through))


@pytest.mark.parametrize(("op_type", "module"), [("LSTM", torch.nn.LSTM), ("GRU", torch.nn.GRU), ("RNN", torch.nn.RNN)])
def test_against_the_modules_of_pytorch(rng: np.random.Generator, op_type: str, module: Any) -> None:
    attributes = {"linear_before_reset": 1} if op_type == "GRU" else {}
    operator, _ = _operator(op_type, rng, attributes, initial=False, through=[0])
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[op_type]  # PyTorch's gates in ONNX's order

    def expression(x: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
        own = module(FEATURES, H, dtype=x.dtype)

        def sorted_(value: Tensor) -> Tensor:
            parts = value.chunk(GATES[op_type])
            return torch.cat([parts[i] for i in order])

        b_in, b_state = b[0].chunk(2)
        values = {"weight_ih_l0": w[0], "weight_hh_l0": r[0], "bias_ih_l0": b_in, "bias_hh_l0": b_state}
        y, _ = torch.func.functional_call(own, {k: sorted_(v) for k, v in values.items()}, (x,))
        return y[:, None]

    _prove(operator, expression)


UNUSUAL: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}),  # as Keras 1 and 2.0–2.2 have it
    ("LSTM", {"activations": ["Sigmoid", "Relu", "Softsign"]}),
    (
        "LSTM",
        {
            "activations": ["Affine", "ScaledTanh", "Elu"],
            "activation_alpha": [0.3, 1.2, 0.7],
            "activation_beta": [0.5, 0.8],
        },
    ),
    ("LSTM", {"clip": 0.4}),
    ("GRU", {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.1], "activation_beta": [0.4]}),
    ("GRU", {"activations": ["Sigmoid", "Softplus"], "linear_before_reset": 1}),
    ("GRU", {"clip": 0.4}),
    ("GRU", {"clip": 0.4, "linear_before_reset": 1}),
    ("RNN", {"activations": ["Softsign"]}),
    ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]}),
    ("RNN", {"clip": 0.5}),
    ("RNN", {"clip": 0.5, "activations": ["Relu"]}),
]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op_type", "attributes"), UNUSUAL)
def test_other_functions_and_clipping(
    rng: np.random.Generator, op_type: str, attributes: dict[str, Any], direction: str
) -> None:
    attributes = _attributes(attributes, direction)
    operator, through = _operator(op_type, rng, attributes, lengths=[4, 2, 3])
    _prove(operator, _expression(op_type, attributes, through))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activations": ["Sigmoid", "Tahn", "Tanh"]}, "LSTM 'the_LSTM' with activation tahn; did you mean 'tanh'"),
        ({"layout": 1}, "LSTM 'the_LSTM' with layout=1"),
    ],
)
def test_what_is_not_known_is_an_error(rng: np.random.Generator, attributes: dict[str, Any], message: str) -> None:
    operator, _ = _operator("LSTM", rng, attributes)
    with pytest.raises(SurgeryError, match=message):
        gradients(operator, {0: np.zeros((T, 1, N, H), np.float32)})
