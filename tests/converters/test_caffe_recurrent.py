"""Caffe's recurrent layers against NumPy as Caffe documents them, and against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converters import convert
from tests.converters.caffe_checks import (
    Array,
    check,
    one,
    run,
    sigmoid,
    write_net,
)


def lstm(x: Array, marks: Array, weights: list[Array], units: int, start: tuple[Array, Array]) -> list[Array]:
    """Long short-term memory as Caffe's lstm_layer.cpp and lstm_unit_layer.cpp describe it."""
    (w_x, b, w_h), (h, c), outputs = weights, start, []
    for x_t, mark in zip(x, marks[..., None], strict=True):
        gates = x_t @ w_x.T + b + (h * mark) @ w_h.T
        i, f, o = (sigmoid(gates[:, k * units : (k + 1) * units]) for k in range(3))
        c = mark * f * c + i * np.tanh(gates[:, 3 * units :])
        h = o * np.tanh(c)
        outputs.append(h)
    return [np.stack(outputs), h[None], c[None]]


@pytest.mark.parametrize("static", [False, True])
def test_lstm_starts_anew_where_it_is_marked(tmp_path: Path, static: bool, rng: np.random.Generator) -> None:
    t, n, d, u = 5, 2, 3, 4
    x = rng.normal(size=(t, n, d)).astype(np.float32)
    cont = np.array([[0, 0], [1, 1], [1, 0], [0, 1], [1, 1]], np.float32)
    w_x, b, w_h = (rng.normal(size=s).astype(np.float32) for s in ((4 * u, d), (4 * u,), (4 * u, u)))
    zero = np.zeros((n, u), np.float32)
    text = one("LSTM", f"recurrent_param {{ num_output: {u} }}", "x y z" if static else "x y")
    if not static:
        check(tmp_path, text, [x, cont], lstm(x, cont, [w_x, b, w_h], u, (zero, zero))[:1], {"it": [w_x, b, w_h]})
        return
    z, w_z = rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(4 * u, 6)).astype(np.float32)
    whole = np.concatenate([x, np.broadcast_to(z, (t, n, 6))], 2)
    expected = lstm(whole, cont, [np.concatenate([w_x, w_z], 1), b, w_h], u, (zero, zero))[:1]
    check(tmp_path, text, [x, cont, z], expected, {"it": [w_x, b, w_z, w_h]})


def test_lstm_with_its_states_outside(tmp_path: Path, rng: np.random.Generator) -> None:
    t, n, d, u = 3, 2, 3, 4
    x, cont = rng.normal(size=(t, n, d)).astype(np.float32), np.ones((t, n), np.float32)
    blobs = [rng.normal(size=s).astype(np.float32) for s in ((4 * u, d), (4 * u,), (4 * u, u))]
    h, c = (rng.normal(size=(1, n, u)).astype(np.float32) for _ in range(2))
    text = one("LSTM", f"recurrent_param {{ num_output: {u} expose_hidden: true }}", "x y h c", "out h1 c1")
    definition, _ = write_net(
        tmp_path, text, {"x": x.shape, "y": cont.shape, "h": h.shape, "c": c.shape}, {"it": blobs}
    )
    found = run(convert(definition), x, cont, h, c)
    for array, want in zip(found.values(), lstm(x, cont, blobs, u, (h[0], c[0])), strict=True):
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5)


def test_lstm_equals_pytorch(tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    cell = torch.nn.LSTM(3, 4)  # its gates' order is i, f, g, o
    order = [0, 1, 3, 2]
    w_x, w_h, b_x, b_h = (p.detach().numpy().reshape(4, 4, -1)[order].reshape(p.shape) for p in (cell._flat_weights))
    x, cont = rng.normal(size=(6, 2, 3)).astype(np.float32), np.ones((6, 2), np.float32)
    expected = cell(torch.tensor(x))[0].detach().numpy()
    check(tmp_path, one("LSTM", "recurrent_param { num_output: 4 }", "x y"), [x, cont], [expected],
          {"it": [w_x, b_x + b_h, w_h]})  # fmt: skip


def test_rnn(tmp_path: Path, rng: np.random.Generator) -> None:
    t, n, d, u = 4, 2, 3, 5
    x = rng.normal(size=(t, n, d)).astype(np.float32)
    cont = np.array([[0, 0], [1, 1], [0, 1], [1, 1]], np.float32)
    w_x, b, w_h, w_o, b_o = (rng.normal(size=s).astype(np.float32) for s in ((u, d), (u,), (u, u), (u, u), (u,)))
    h, expected = np.zeros((n, u), np.float32), []
    for x_t, mark in zip(x, cont[..., None], strict=True):
        h = np.tanh(x_t @ w_x.T + b + (h * mark) @ w_h.T)
        expected.append(np.tanh(h @ w_o.T + b_o))
    text = one("RNN", f"recurrent_param {{ num_output: {u} }}", "x y")
    check(tmp_path, text, [x, cont], [np.stack(expected)], {"it": [w_x, b, w_h, w_o, b_o]})
