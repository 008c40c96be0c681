"""Gradients of LSTM, GRU and RNN: backpropagation through time in a Scan (Werbos 1990).

The operators give the hidden state of every step, so that what goes into the gates is worked out for all steps at once,
and so are the gradients of the weights. Only what leads from step to step runs in the Scan. A step behind the end of a
sequence (`sequence_lens`) passes the state on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule
from surgery.autodiff.rules.recurrence import Direction, Scanned
from surgery.emit import Emitter

__all__: list[str] = []


def _recurrent(c: Context, gates: int, gradient: Callable[[Direction], list[ir.Value | None]]) -> Gradients:
    """Puts the directions' gradients together: those of X add up, the others are rows."""
    direction = c.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    each = [gradient(Direction(c, i, back, gates)) for i, back in enumerate(backwards)]
    op = c.op
    result: list[ir.Value | None] = []
    for index, parts in enumerate(zip(*each, strict=True)):
        present = [p for p in parts if p is not None]
        if not present or not c.wants(index):
            result.append(None)
        elif index == 0:
            result.append(present[0] if len(present) == 1 else op.Add(*present))
        else:
            result.append(op.Concat(*(op.Unsqueeze(p, np.array([0])) for p in present), axis=0))
    return result


@rule("RNN")
def rnn(c: Context) -> Gradients:
    """H = f(X Wᵀ + H₋₁ Rᵀ + b)."""
    return _recurrent(c, 1, _rnn)


def _rnn(d: Direction) -> list[ir.Value | None]:
    (f,) = d.functions
    slope = f.slope(d.op, None if f.by_value else d.gates(), d.y)

    def body(op: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Scanned:
        dh = states[0] if d.dy is None else op.Add(states[0], slices[1])
        d_gates = d.hide(op, slices, op.Mul(dh, slices[0]))
        return d.pass_on(op, slices, [(op.MatMul(d_gates, d.r), dh)]), [d_gates]

    slices = [slope] if d.dy is None else [slope, d.dy]
    (dh,), (d_gates,) = d.scan([d.state(d.c.dy_of(1))], slices, body, undo=True)
    return [*d.weights(d_gates, d_gates), None, dh]


@rule("LSTM")
def lstm(c: Context) -> Gradients:
    """C = f·C₋₁ + i·g, H = o·tanh(C); σ for i, o, f and tanh for g of X Wᵀ + H₋₁ Rᵀ + b (+ P·C), or other functions."""
    return _recurrent(c, 4, _lstm)


def _lstm(d: Direction) -> list[ir.Value | None]:
    c, coupled = d.c, bool(d.c.attr("input_forget", 0))
    sigma, tanh, out_of = d.functions
    out_of = dataclasses.replace(out_of, clip=0.0)  # the runtimes bound what goes into the gates, not the cell
    peepholes = d.split(d.own(c.x(7)), 1, 1, 1) if c.has(7) else []

    def forward(op: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Scanned:
        before = states[0]
        a_i, a_o, a_f, a_g = d.split(slices[0], 1, 1, 1, 1, op=op)
        if peepholes:
            a_i, a_f = op.Add(a_i, op.Mul(before, peepholes[0])), op.Add(a_f, op.Mul(before, peepholes[2]))
        i, g = sigma.value(op, a_i), tanh.value(op, a_g)
        f = op.Sub(1.0, i) if coupled else sigma.value(op, a_f)
        cell = op.Add(op.Mul(f, before), op.Mul(i, g))
        if peepholes:
            a_o = op.Add(a_o, op.Mul(cell, peepholes[1]))
        o = sigma.value(op, a_o)
        pairs = [(sigma, a_i, i), (sigma, a_o, o), (sigma, a_f, f), (tanh, a_g, g)]
        slopes = [function.slope(op, a, y) for function, a, y in pairs]
        collected = [
            op.Identity(before),
            op.Identity(cell),
            op.Concat(i, o, f, g, axis=-1),
            op.Concat(*slopes, axis=-1),
        ]
        return d.pass_on(op, slices, [(cell, before)]), collected

    _, (before, cells, gates, slopes) = d.scan([d.first(6)], [d.gates()], forward, undo=False)

    def backward(op: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Scanned:
        dh, dc_later = states
        if d.dy is not None:
            dh = op.Add(dh, slices[4])
        before, cell = slices[:2]
        i, o, f, g = d.split(slices[2], 1, 1, 1, 1, op=op)
        s_i, s_o, s_f, s_g = d.split(slices[3], 1, 1, 1, 1, op=op)
        out = out_of.value(op, cell)
        d_o = op.Mul(op.Mul(dh, out), s_o)
        dc = op.Add(dc_later, op.Mul(op.Mul(dh, o), out_of.slope(op, cell, out)))
        if peepholes:
            dc = op.Add(dc, op.Mul(d_o, peepholes[1]))
        d_i = op.Mul(op.Mul(dc, op.Sub(g, before) if coupled else g), s_i)
        d_f = op.Mul(d_i, 0.0) if coupled else op.Mul(op.Mul(dc, before), s_f)
        d_g = op.Mul(op.Mul(dc, i), s_g)
        d_gates = d.hide(op, slices, op.Concat(d_i, d_o, d_f, d_g, axis=-1))
        dc_before = op.Mul(dc, f)
        if peepholes:
            dc_before = op.Sum(dc_before, op.Mul(d_i, peepholes[0]), op.Mul(d_f, peepholes[2]))
        pairs = [(op.MatMul(d_gates, d.r), dh), (dc_before, dc_later)]
        return d.pass_on(op, slices, pairs), [d_gates]

    slices = [before, cells, gates, slopes] + ([] if d.dy is None else [d.dy])
    states = [d.state(c.dy_of(1)), d.state(c.dy_of(2))]
    (dh, dc), (d_gates,) = d.scan(states, slices, backward, undo=True)
    dp = None
    if c.wants(7):
        d_i, d_o, d_f, _ = d.split(d_gates, 1, 1, 1, 1)
        products = [d.op.Mul(d_i, before), d.op.Mul(d_o, cells), d.op.Mul(d_f, before)]
        dp = d.op.Concat(*(d.op.ReduceSum(p, np.array([0, 1]), keepdims=0) for p in products), axis=0)
    return [*d.weights(d_gates, d_gates), None, dh, dc, dp]


@rule("GRU")
def gru(c: Context) -> Gradients:
    """H = (1 − z)·n + z·H₋₁, with σ for z and r, and n = tanh(X Wₙᵀ + (r·H₋₁) Rₙᵀ + b).

    With `linear_before_reset`, n = tanh(X Wₙᵀ + b + r·(H₋₁ Rₙᵀ + b')), as PyTorch and cuDNN have it.
    """
    return _recurrent(c, 3, _gru_linear_first if c.attr("linear_before_reset", 0) else _gru)


def _gru_linear_first(d: Direction) -> list[ir.Value | None]:
    op, biases, (sigma, tanh) = d.op, d.biases, d.functions
    into, n_in = d.split(d.product(d.x, d.w, biases[0]), 2, 1)
    state, n_state = d.split(d.product(d.before, d.r, biases[1]), 2, 1)
    a_zr = op.Add(into, state)
    zr = sigma.value(op, a_zr)
    a_n = op.Add(n_in, op.Mul(d.split(zr, 1, 1)[1], n_state))
    n = tanh.value(op, a_n)

    def body(op: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Scanned:
        zr, s_zr, n, s_n, before, n_state = slices[:6]
        dh = states[0] if d.dy is None else op.Add(states[0], slices[6])
        z, r = d.split(zr, 1, 1, op=op)
        d_n = op.Mul(op.Mul(dh, op.Sub(1.0, z)), s_n)
        d_z = op.Mul(dh, op.Sub(before, n))
        d_zr = op.Mul(op.Concat(d_z, op.Mul(d_n, n_state), axis=-1), s_zr)
        d_in = d.hide(op, slices, op.Concat(d_zr, d_n, axis=-1))
        d_state = d.hide(op, slices, op.Concat(d_zr, op.Mul(d_n, r), axis=-1))
        dh_before = op.Add(op.Mul(dh, z), op.MatMul(d_state, d.r))
        return d.pass_on(op, slices, [(dh_before, dh)]), [d_in, d_state]

    slices = [zr, sigma.slope(op, a_zr, zr), n, tanh.slope(op, a_n, n), d.before, n_state]
    slices += [] if d.dy is None else [d.dy]
    (dh,), (d_in, d_state) = d.scan([d.state(d.c.dy_of(1))], slices, body, undo=True)
    return [*d.weights(d_in, d_state), None, dh]


def _gru(d: Direction) -> list[ir.Value | None]:
    c, op, biases, (sigma, tanh) = d.c, d.op, d.biases, d.functions
    r_zr, r_n = op.Split(d.r, np.array([2 * d.hidden, d.hidden]), axis=0, _outputs=2)
    b_zr, b_n = (
        op.Split(biases[1], np.array([2 * d.hidden, d.hidden]), axis=0, _outputs=2) if biases[1] else (None, None)
    )
    into, n_in = d.split(d.product(d.x, d.w, biases[0]), 2, 1)
    a_zr = op.Add(into, d.product(d.before, r_zr, b_zr))
    zr = sigma.value(op, a_zr)
    kept = op.Mul(d.split(zr, 1, 1)[1], d.before)
    a_n = op.Add(n_in, d.product(kept, r_n, b_n))
    n = tanh.value(op, a_n)

    def body(op: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Scanned:
        zr, s_zr, n, s_n, before = slices[:5]
        dh = states[0] if d.dy is None else op.Add(states[0], slices[5])
        z, r = d.split(zr, 1, 1, op=op)
        d_n = op.Mul(op.Mul(dh, op.Sub(1.0, z)), s_n)
        d_kept = op.MatMul(d_n, r_n)
        d_zr = op.Mul(op.Concat(op.Mul(dh, op.Sub(before, n)), op.Mul(d_kept, before), axis=-1), s_zr)
        dh_before = op.Sum(op.Mul(dh, z), op.Mul(d_kept, r), op.MatMul(d_zr, r_zr))
        return d.pass_on(op, slices, [(dh_before, dh)]), [d.hide(op, slices, op.Concat(d_zr, d_n, axis=-1))]

    slices = [zr, sigma.slope(op, a_zr, zr), n, tanh.slope(op, a_n, n), d.before] + ([] if d.dy is None else [d.dy])
    (dh,), (d_gates,) = d.scan([d.state(c.dy_of(1))], slices, body, undo=True)
    dx, dw, _, db = d.weights(d_gates, d_gates)
    dr = None
    if c.wants(2):
        d_zr, d_n = d.split(d_gates, 2, 1)
        dr = op.Concat(d.outer(d_zr, d.before), d.outer(d_n, kept), axis=0)
    return [dx, dw, dr, db, None, dh]
