"""Gradients of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule

__all__: list[str] = []


@rule("Gemm")
def gemm(c: Context) -> Gradients:
    """Y = α A' B' + β C, with A' = A or Aᵀ and B' = B or Bᵀ."""
    op, a, b, dy = c.op, c.x(0), c.x(1), c.dy
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    ta, tb = c.attr("transA", 0), c.attr("transB", 0)
    da = db = dc = None
    if c.wants(0):
        da = op.Gemm(b, dy, alpha=alpha, transA=tb, transB=1) if ta else op.Gemm(dy, b, alpha=alpha, transB=1 - tb)
    if c.wants(1):
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=ta) if tb else op.Gemm(a, dy, alpha=alpha, transA=1 - ta)
    if c.wants(2):
        dc = c.unbroadcast(dy if beta == 1.0 else op.Mul(dy, float(beta)), c.x(2))
    return [da, db, dc]


def _transposed(c: Context, value: ir.Value, rank: int) -> ir.Value:
    return c.op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])


@rule("MatMul")
def matmul(c: Context) -> Gradients:
    """Batched and broadcast as numpy.matmul; a vector operand is a matrix of one row or column."""
    op, a, b, dy = c.op, c.x(0), c.x(1), c.dy
    rank_a, rank_b = c.rank(a), c.rank(b)
    if rank_a == 1 and rank_b == 1:
        return [op.Mul(dy, b), op.Mul(dy, a)]
    if c.y().shape is None or a.shape is None or b.shape is None:
        c.dims(c.y())
    batch = list(c.y().shape)[: -2 if rank_a > 1 and rank_b > 1 else -1]  # type: ignore[arg-type]
    if rank_a == 1:  # [k] × […, k, n]
        row = op.Unsqueeze(dy, op.constant([-2]))
        da = op.MatMul(row, _transposed(c, b, rank_b)) if c.wants(0) else None
        db = op.MatMul(op.Unsqueeze(a, op.constant([1])), row) if c.wants(1) else None
        return [da and c.unbroadcast(da, a, ir.Shape([*batch, 1, *a.shape])), db]  # type: ignore[misc]
    if rank_b == 1:  # […, m, k] × [k]
        column = op.Unsqueeze(dy, op.constant([-1]))
        da = op.MatMul(column, op.Unsqueeze(b, op.constant([0]))) if c.wants(0) else None
        db = op.MatMul(_transposed(c, a, rank_a), column) if c.wants(1) else None
        batch = batch[:-1]
        return [da, db and c.unbroadcast(op.Squeeze(db, op.constant([-1])), b, ir.Shape([*batch, *b.shape]))]  # type: ignore[misc]
    da = op.MatMul(dy, _transposed(c, b, rank_b)) if c.wants(0) else None
    if c.wants(1) and rank_b == 2 and rank_a > 2 and None not in c.dims(b):
        # One product over all rows instead of a batch of products and their sum.
        k, n = c.dims(b)
        db = op.Gemm(op.Reshape(a, op.constant([-1, k])), op.Reshape(dy, op.constant([-1, n])), transA=1)
        return [da and c.unbroadcast(da, a, ir.Shape([*batch, *a.shape[-2:]])), db]  # type: ignore[index, misc]
    db = op.MatMul(_transposed(c, a, rank_a), dy) if c.wants(1) else None
    return [
        da and c.unbroadcast(da, a, ir.Shape([*batch, *a.shape[-2:]])),  # type: ignore[index, misc]
        db and c.unbroadcast(db, b, ir.Shape([*batch, *b.shape[-2:]])),  # type: ignore[index, misc]
    ]
