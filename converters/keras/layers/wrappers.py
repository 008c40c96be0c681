"""Layers that apply another layer."""

from __future__ import annotations

from converters.keras.context import Context, layer
from converters.keras.network import Call
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__: list[str] = []


@layer("TimeDistributed")
def time_distributed(c: Context) -> Tensor:
    """Applies a layer to each step of a sequence, by making steps examples: [N, T, …] as [N · T, …]."""
    (inner,) = c.layer.wrapped
    x = c.x
    if x.rank < 3:
        raise c.error(f"needs an input of 3 dimensions or more, and has one of {x.rank}")
    batch, steps = x.dims[:2]
    both: Dim | None = batch * steps if isinstance(batch, int) and isinstance(steps, int) else None
    kept = {i: i + 1 for i in range(1, x.rank - 1)}
    rows = c.tensor(c.reshape(c.plain(x), [both, *x.dims[2:]], kept), [both, *x.dims[2:]])
    result = c.builder.call(inner, c.layer_name, Call([rows], {}), c.suffix)
    if len(result) != 1:
        raise c.error(f"wraps a {inner.type} with {len(result)} outputs; it must have one")
    y = result[0]
    dims: list[Dim] = [batch, steps, *y.dims[1:]]
    value = c.plain(y)
    if all(isinstance(d, int) for d in dims[1:]) or all(isinstance(d, int) for d in (batch, *dims[2:])):
        return c.tensor(c.reshape(value, dims), dims)
    op = c.op
    # The batch and the number of steps are the input's, all else the result's.
    shape = op.Concat(op.Shape(c.plain(x), start=0, end=2), op.Shape(value, start=1), axis=0)
    return c.tensor(op.Reshape(value, shape), dims)
