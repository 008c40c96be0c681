"""Gradients of matrix products and of Einsum."""

from __future__ import annotations

import string

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule
from surgery.errors import SurgeryError

__all__: list[str] = []

Size = int | ir.SymbolicDim


def _sizes(c: Context, value: ir.Value) -> list[Size]:
    c.rank(value)  # says which rank is unknown
    assert value.shape is not None
    return list(value.shape)


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


@rule("MatMul")
def matmul(c: Context) -> Gradients:
    """Batched and broadcast as numpy.matmul; a vector operand is a matrix of one row or column."""
    op, a, b, dy = c.op, c.x(0), c.x(1), c.dy
    row, column = c.rank(a) == 1, c.rank(b) == 1
    batch = _sizes(c, c.y())[: c.rank(c.y()) - 2 + row + column]
    if row or column:
        a = _matrix(c, a, 0) if row else a
        b = _matrix(c, b, 1) if column else b
        dy = op.Unsqueeze(dy, op.constant([0, 1] if row and column else [-2] if row else [-1]))
    da = db = None
    if c.wants(0):
        product = op.MatMul(dy, _transposed(c, b)) if batch else op.Gemm(dy, b, transB=1)
        da = _summed(c, product, batch, a, c.x(0))
    if c.wants(1):
        k, n = c.dims(b)[-2:]
        if not batch:
            product = op.Gemm(a, dy, transA=1)
        elif c.rank(b) == 2 and k is not None and n is not None:
            # One product over all rows instead of a batch of products and their sum.
            product = op.Gemm(op.Reshape(a, op.constant([-1, k])), op.Reshape(dy, op.constant([-1, n])), transA=1)
            batch = []
        else:
            product = op.MatMul(_transposed(c, a), dy)
        db = _summed(c, product, batch, b, c.x(1))
    return [da, db]


def _matrix(c: Context, vector: ir.Value, axis: int) -> ir.Value:
    """A vector as a matrix of one row (axis 0) or column (axis 1)."""
    matrix = c.op.Unsqueeze(vector, c.op.constant([axis]))
    sizes = _sizes(c, vector)
    sizes.insert(axis, 1)
    matrix.shape, matrix.dtype = ir.Shape(sizes), vector.dtype
    return matrix


def _transposed(c: Context, value: ir.Value) -> ir.Value:
    rank = c.rank(value)
    return c.op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(c: Context, gradient: ir.Value, batch: list[Size], matrix: ir.Value, operand: ir.Value) -> ir.Value:
    """The gradient of `operand` from that of all its copies in the batch."""
    gradient = c.unbroadcast(gradient, matrix, ir.Shape([*batch, *_sizes(c, matrix)[-2:]]))
    return gradient if matrix is operand else c.op.Reshape(gradient, c.shape_of(operand))


@rule("Einsum")
def einsum(c: Context) -> Gradients:
    """Each operand's gradient is the Einsum of dy and the other operands, to the operand's own subscripts."""
    terms, result = _subscripts(c)
    operands = [c.x(i) for i in range(len(terms))]
    return [_einsum_operand(c, terms, result, operands, i) if c.wants(i) else None for i in range(len(terms))]


def _subscripts(c: Context) -> tuple[list[str], str]:
    """The subscripts of each operand and of the result, the ellipsis spelled out in letters of its own."""
    left, arrow, result = c.attr("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        result = ("..." if "..." in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    free = [x for x in string.ascii_letters if x not in left]
    hidden = [c.rank(c.x(i)) - len(t) + 3 if "..." in t else 0 for i, t in enumerate(terms)]
    spelled = "".join(free[: max(hidden)])
    terms = [t.replace("...", spelled[len(spelled) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return terms, result.replace("...", spelled)


def _einsum_operand(c: Context, terms: list[str], result: str, operands: list[ir.Value], index: int) -> ir.Value:
    op, x, own = c.op, operands[index], terms[index]
    factors = [c.dy, *(v for i, v in enumerate(operands) if i != index)]
    subscripts = [result, *(t for i, t in enumerate(terms) if i != index)]
    free = (letter for letter in string.ascii_letters if letter not in "".join(terms))
    target = ""
    for axis, letter in enumerate(own):
        if letter in target:  # a diagonal: nothing beside it
            letter, first = next(free), letter
            factors.append(_identity(c, x, axis))
            subscripts.append(first + letter)
        elif not any(letter in s for s in subscripts):  # summed over: the same all along the axis
            factors.append(op.Expand(op.constant(1.0, x.dtype), op.Shape(x, start=axis, end=axis + 1)))
            subscripts.append(letter)
        target += letter
    gradient = op.Einsum(*factors, equation=f"{','.join(subscripts)}->{target}")
    sizes = [_size(c, letter, terms, result, operands, x, axis) for axis, letter in enumerate(own)]
    return c.unbroadcast(gradient, x, ir.Shape(sizes))


def _size(
    c: Context, letter: str, terms: list[str], result: str, operands: list[ir.Value], x: ir.Value, axis: int
) -> Size:
    """The size of a subscript's axis, after broadcasting."""
    sizes = [_sizes(c, x)[axis]]
    for term, value in [*zip(terms, operands, strict=True), (result, c.y())]:
        sizes += [size for own, size in zip(term, _sizes(c, value), strict=True) if own == letter]
    return next((s for s in sizes if s != 1), 1)


def _identity(c: Context, x: ir.Value, axis: int) -> ir.Value:
    size = c.dims(x)[axis]
    if size is None or x.dtype is None:
        raise SurgeryError(
            f"Einsum {c.node.name!r}: the diagonal of {x.name!r} needs a size known beforehand; give the model's "
            "inputs fixed shapes"
        )
    return c.op.constant(np.eye(size, dtype=x.dtype.numpy()))
