"""Recurrent layers, unrolled over time as Caffe itself does it: a sequence's mark may start it anew at any step."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from converters.caffe.caffe_pb2 import RecurrentParameter
from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []

_MOST_STEPS = 2048


@dataclasses.dataclass
class _Sequence:
    """What both layers begin with.

    Attributes:
        steps: For each step, the part of the gates that the input gives: [N, gates].
        marks: For each step, 0 where a sequence starts, else 1: [N, 1].
        states: The first states: [N, units] each.
        blobs: How many blobs are used so far.
    """

    steps: list[ir.Value]
    marks: list[ir.Value]
    states: list[ir.Value]
    blobs: int


def _begin(c: Context, gates: int, states: int) -> _Sequence:
    """Bottoms are x [T, N, …], marks [T, N], perhaps an input for all steps [N, …], and perhaps the first states."""
    op, param = c.op, c.layer.recurrent_param
    hidden = states if param.expose_hidden else 0
    static = len(c.bottoms) - 2 - hidden
    if static not in (0, 1) or len(c.layer.top) != 1 + hidden:
        raise c.error(f"has {len(c.bottoms)} bottoms and {len(c.layer.top)} tops, which is not what the layer takes")
    if param.num_output < 1:
        raise c.error("num_output must be 1 or more")
    c.need_rank(2)
    time = c.size(0)
    if time > _MOST_STEPS:
        raise c.error(f"{time} steps are too many to unroll; {_MOST_STEPS} is the most")
    if c.dims(c.bottoms[1]) != c.dims()[:2]:
        raise c.error("needs a bottom [T, N, …] and marks [T, N] of the same T and N")
    rows, depth = gates * param.num_output, _flat(c, c.x, 2)
    weight = c.parameter(0, "weight", [rows, depth], param.weight_filler, "xavier")
    bias = c.parameter(1, "bias", [rows], param.bias_filler)
    flat = op.Reshape(c.x, op.constant([-1, depth]))
    inputs = op.Reshape(op.Gemm(flat, weight, bias, transB=1, _name=c.name), op.constant([time, -1, rows]))
    blobs = 2
    if static:
        c.need_rank(1, value=c.bottoms[2])
        if c.dims(c.bottoms[2])[0] != c.dims()[1]:
            raise c.error(f"its input for all steps must have {c.dims()[1]} rows, as many as there are sequences")
        size = _flat(c, c.bottoms[2], 1)
        extra = c.parameter(2, "static_weight", [rows, size], param.weight_filler, "xavier")
        constant = op.Gemm(op.Reshape(c.bottoms[2], op.constant([-1, size])), extra, transB=1)
        inputs, blobs = op.Add(inputs, constant), 3
    marks = op.Reshape(c.bottoms[1], op.constant([time, -1, 1]))
    if hidden:
        units = op.constant([-1, param.num_output])
        first = [op.Reshape(value, units) for value in c.bottoms[-hidden:]]
    else:
        n = op.Shape(c.x, start=1, end=2)
        zeros = op.Expand(op.constant(np.zeros((1, 1), np.float32)), _joined(c, n, param))
        first = [zeros] * states
    return _Sequence(_steps(c, inputs, time), _steps(c, marks, time), first, blobs)


def _joined(c: Context, n: ir.Value, param: RecurrentParameter) -> ir.Value:
    shape = c.op.Concat(n, c.op.constant([param.num_output]), axis=0)
    assert isinstance(shape, ir.Value)
    return shape


def _flat(c: Context, value: ir.Value, start: int) -> int:
    size = 1
    for axis in range(start, c.rank(value)):
        size *= c.size(axis, value)
    return size


def _steps(c: Context, value: ir.Value, time: int) -> list[ir.Value]:
    axis = c.op.constant([0])
    parts = c.op.Split(value, axis=0, num_outputs=time, _outputs=time) if time > 1 else [value]
    return [c.op.Squeeze(part, axis) for part in parts]


def _end(c: Context, outputs: list[ir.Value], states: list[ir.Value]) -> list[ir.Value]:
    """The outputs of all steps [T, N, units] and, where they are wanted, the last states [1, N, units]."""
    units = c.layer.recurrent_param.num_output
    first = c.op.constant([0])
    dims: list[Dim] = [*c.dims()[:2], units]
    tops = [c.shaped(c.op.Concat(*[c.op.Unsqueeze(y, first) for y in outputs], axis=0), dims)]
    if c.layer.recurrent_param.expose_hidden:
        tops += [c.shaped(c.op.Unsqueeze(s, first), [1, dims[1], units]) for s in states]
    return tops


@layer("LSTM")
def lstm(c: Context) -> list[ir.Value]:
    """Long short-term memory without peepholes (Donahue et al. 2015); the gates' order is i, f, o, g."""
    op, units = c.op, c.layer.recurrent_param.num_output
    sequence = _begin(c, gates=4, states=2)
    weight = c.parameter(
        sequence.blobs, "recurrent_weight", [4 * units, units], c.layer.recurrent_param.weight_filler, "xavier"
    )
    h, cell = sequence.states
    outputs = []
    for x, mark in zip(sequence.steps, sequence.marks, strict=True):
        gates = op.Gemm(op.Mul(h, mark), weight, x, transB=1)
        i, f, o, g = op.Split(gates, axis=1, num_outputs=4, _outputs=4)
        kept = op.Mul(op.Mul(op.Sigmoid(f), cell), mark)
        cell = op.Add(kept, op.Mul(op.Sigmoid(i), op.Tanh(g)))
        h = op.Mul(op.Sigmoid(o), op.Tanh(cell))
        outputs.append(h)
    return _end(c, outputs, [h, cell])


@layer("RNN")
def rnn(c: Context) -> list[ir.Value]:
    """h = tanh(W h + V x + b), o = tanh(U h + d)"""
    op, param = c.op, c.layer.recurrent_param
    units = param.num_output
    sequence = _begin(c, gates=1, states=1)
    square, at = [units, units], sequence.blobs
    recurrent = c.parameter(at, "recurrent_weight", square, param.weight_filler, "xavier")
    weight = c.parameter(at + 1, "output_weight", square, param.weight_filler, "xavier")
    bias = c.parameter(at + 2, "output_bias", [units], param.bias_filler)
    (h,) = sequence.states
    outputs = []
    for x, mark in zip(sequence.steps, sequence.marks, strict=True):
        h = op.Tanh(op.Gemm(op.Mul(h, mark), recurrent, x, transB=1))
        outputs.append(op.Tanh(op.Gemm(h, weight, bias, transB=1)))
    return _end(c, outputs, [h])
