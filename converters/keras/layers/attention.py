"""Attention (Vaswani et al. 2017; Luong et al. 2015; Bahdanau et al. 2015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor

__all__: list[str] = []

_ORDER = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask", "return_attention_scores")
_PARTS = ("query_dense", "key_dense", "value_dense", "output_dense")


def _arguments(c: Context) -> dict[str, Any]:
    """What MultiHeadAttention is called with, by name."""
    return dict(zip(_ORDER, c.args, strict=False)) | c.kwargs


@layer(
    "MultiHeadAttention",
    variables=" ".join(f"{part}/kernel {part}/bias?use_bias" for part in _PARTS),
)
def multi_head_attention(c: Context) -> Tensor | list[Tensor]:
    """softmax(Q Kᵀ / √d) V in several heads."""
    given, op = _arguments(c), c.op
    query, value = given.get("query"), given.get("value")
    if not isinstance(query, Tensor) or not isinstance(value, Tensor):
        raise c.error("needs a query and a value")
    key = given.get("key") or value
    if any(isinstance(given.get(name), Tensor) for name in _ORDER[3:7]):
        raise c.mask_error()
    c.no_mask()
    axes = c.get("attention_axes")
    if any(t.rank != 3 for t in (query, value, key)) or axes not in (None, [1], 1) or c.get("use_gate", False):
        raise c.error("attends over other axes than the second of three, or with a gate, which cannot be converted")
    if c.get("sliding_window") is not None:
        raise c.error("has a sliding window, which cannot be converted")
    heads, size = c.integer("num_heads"), c.integer("key_dim")
    inner = c.integer("value_dim", size)
    q, k, v = (
        _projected(c, part, t, heads, n, perm)
        for part, t, n, perm in (
            ("query_dense", query, size, [0, 2, 1, 3]),
            ("key_dense", key, size, [0, 2, 3, 1]),
            ("value_dense", value, inner, [0, 2, 1, 3]),
        )
    )
    scores = op.MatMul(op.Mul(q, 1 / math.sqrt(size)), k)
    if given.get("use_causal_mask"):
        scores = _causal(c, scores, query, value)
    weights = _dropped(c, op.Softmax(scores, axis=-1))
    joined = op.Reshape(op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3]), op.constant([0, 0, heads * inner]))
    stored = c.stored_shape("output_dense/kernel")
    if stored is None or len(stored) != 3:
        raise c.error(f"its output_dense/kernel is {stored} and must have 3 dimensions")
    width = stored[-1]
    kernel = c.parameter("output_dense/kernel", [heads, inner, width], reshape=[heads * inner, width])
    y = op.MatMul(joined, kernel, _name=c.name)
    if c.has("output_dense/bias"):
        y = op.Add(y, c.parameter("output_dense/bias", [width]))
    result = c.tensor(y, [*query.dims[:2], width])
    if given.get("return_attention_scores"):
        return [result, c.tensor(weights, [query.dims[0], heads, query.dims[1], value.dims[1]])]
    return result


def _projected(c: Context, part: str, t: Tensor, heads: int, size: int, perm: list[int]) -> ir.Value:
    t, op = c.floats(t), c.op
    depth = c.size(2, t)
    kernel = c.parameter(f"{part}/kernel", [depth, heads, size], reshape=[depth, heads * size])
    y = op.MatMul(c.plain(t), kernel, _name=f"{c.name}/{part}")
    if c.has(f"{part}/bias"):
        y = op.Add(y, c.parameter(f"{part}/bias", [heads, size], reshape=[heads * size]))
    value = op.Transpose(op.Reshape(y, op.constant([0, 0, heads, size])), perm=perm)
    assert isinstance(value, ir.Value)
    return value


def _causal(c: Context, scores: ir.Value, query: Tensor, value: Tensor) -> ir.Value:
    """Hides from each step those behind it."""
    rows, columns = c.size(1, query), c.size(1, value)
    if rows * columns > 2**24:
        raise c.error(f"hides later steps of {rows} × {columns}, which are too many")
    hidden = np.triu(np.full((rows, columns), np.finfo(np.float32).min / 2, np.float32), 1)
    masked = c.op.Add(scores, c.constant("causal_mask", hidden))
    assert isinstance(masked, ir.Value)
    return masked


def _dropped(c: Context, weights: ir.Value) -> ir.Value:
    rate = c.number("dropout", 0.0)
    return c.op.Dropout(weights, np.float32(rate)) if rate else weights


@layer("Attention", "AdditiveAttention", variables="scale?use_scale")
def attention(c: Context) -> Tensor | list[Tensor]:
    """softmax(scores) V, the scores a dot product of query and key, or additive: scale · tanh(Q + K)."""
    op, inputs = c.op, [c.floats(t) for t in c.inputs]
    if len(inputs) not in (2, 3) or any(t.rank != 3 for t in inputs):
        raise c.error(f"has {len(inputs)} inputs and takes 2 or 3 of 3 dimensions")
    c.no_mask()
    query, value, key = inputs[0], inputs[1], inputs[-1]
    q, v, k = (c.plain(t) for t in (query, value, key))
    if c.layer.type == "AdditiveAttention":
        parts = op.Tanh(op.Add(op.Unsqueeze(q, op.constant([2])), op.Unsqueeze(k, op.constant([1]))))
        if c.has("scale"):
            parts = op.Mul(parts, c.parameter("scale", [c.size(2, query)]), _name=c.name)
        scores = op.ReduceSum(parts, op.constant([3]), keepdims=0)
    elif c.choice("score_mode", ("dot",), "dot"):
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))
        if c.has("scale"):
            scores = op.Mul(scores, c.parameter("scale", []))
    if c.kwargs.get("use_causal_mask"):
        scores = _causal(c, scores, query, value)
    weights = _dropped(c, op.Softmax(scores, axis=-1))
    result = c.tensor(op.MatMul(weights, v), [*query.dims[:2], value.dims[2]])
    if c.kwargs.get("return_attention_scores"):
        return [result, c.tensor(weights, [*query.dims[:2], value.dims[1]])]
    return result
