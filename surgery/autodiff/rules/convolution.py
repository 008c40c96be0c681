"""Gradients of convolutions (Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4)."""

from __future__ import annotations

from surgery.autodiff.backward import Context, Gradients, fused_rule, rule
from surgery.errors import SurgeryError

__all__ = ["explicit_pads"]


def explicit_pads(c: Context, spatial: int, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """The padding [begin…, end…] of a Conv or pooling operator, `auto_pad` worked out (ONNX, Conv, `auto_pad`)."""
    auto = c.attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(c.attr("pads") or [0] * 2 * spatial)
    if auto == "VALID":
        return [0] * 2 * spatial
    begin, end = [], []
    for size, k, s, d in zip(c.dims(c.x())[2:], kernel, strides, dilations, strict=True):
        if size is None:
            raise SurgeryError(
                f"{c.node.op_type} {c.node.name!r}: auto_pad={auto} needs a known input size; give the model's input "
                "height and width"
            )
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin + end


@fused_rule("Conv")
def conv_fused(c: Context) -> Gradients:
    spatial = c.rank(c.x()) - 2
    kernel = [d or 0 for d in c.dims(c.x(1))[2:]]
    strides, dilations = c.attr("strides") or [1] * spatial, c.attr("dilations") or [1] * spatial
    outputs = c.op.ConvGrad(
        c.dy,
        c.x(0),
        c.x(1),
        _domain="com.microsoft",
        _outputs=3,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=explicit_pads(c, spatial, kernel, strides, dilations),
        group=c.attr("group", 1),
    )
    for index, output in enumerate(outputs):
        if not c.wants(index):
            output.name = ""
    if not c.wants(2):
        outputs[0].producer().resize_outputs(2)
    return [g if c.wants(i) else None for i, g in enumerate(outputs)]


@rule("Conv")
def conv(c: Context) -> Gradients:
    """dX: the transposed convolution of dY; dW: X convolved with dY, batch and channels swapped."""
    op, x, w, dy = c.op, c.x(0), c.x(1), c.dy
    spatial = c.rank(x) - 2
    kernel = [d or 0 for d in c.dims(w)[2:]]
    strides, dilations = c.attr("strides") or [1] * spatial, c.attr("dilations") or [1] * spatial
    pads, group = explicit_pads(c, spatial, kernel, strides, dilations), c.attr("group", 1)
    size_x, size_y = c.dims(x)[2:], c.dims(c.y())[2:]
    axes = list(range(2, 2 + spatial))
    dx = dw = db = None
    if c.wants(2):
        db = op.ReduceSum(dy, op.constant([0, *axes]), keepdims=0)
    if None in size_x or None in size_y:
        raise SurgeryError(f"Conv {c.node.name!r}: give the model's input height and width")
    if c.wants(0):
        extra = [
            sx - ((sy - 1) * s - p0 - p1 + (k - 1) * d + 1)
            for sx, sy, s, p0, p1, k, d in zip(
                size_x, size_y, strides, pads[:spatial], pads[spatial:], kernel, dilations, strict=True
            )
        ]
        dx = op.ConvTranspose(dy, w, strides=strides, dilations=dilations, pads=pads, group=group, output_padding=extra)
    if c.wants(1):
        swap = [1, 0, *axes]
        span = [
            (sy - 1) * s + k_d
            for sy, s, k_d in zip(
                size_y, strides, [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)], strict=True
            )
        ]
        crop = [s - (sx + p0 + p1) for s, sx, p0, p1 in zip(span, size_x, pads[:spatial], pads[spatial:], strict=True)]
        full = op.Conv(
            op.Transpose(x, perm=swap),
            op.Transpose(dy, perm=swap),
            strides=dilations,
            dilations=strides,
            pads=[*pads[:spatial], *[p + e for p, e in zip(pads[spatial:], crop, strict=True)]],
        )
        dw = op.Transpose(full, perm=swap)
    return [dx, dw, db]
