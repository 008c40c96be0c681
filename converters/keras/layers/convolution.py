"""Convolution and its relatives, over one, two or three axes.

"same" pads as TensorFlow does: so that there are ⌈size / stride⌉ windows, with the odd one of the padding at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.layers.activation import activate
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__ = ["Window", "same_padding", "windows"]


@dataclasses.dataclass(frozen=True)
class Window:
    """A window over one axis.

    Attributes:
        kernel: How many places it has.
        stride: How far apart windows are.
        dilation: How far apart its places are.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1

    @property
    def width(self) -> int:
        """From its first place to its last."""
        return (self.kernel - 1) * self.dilation + 1

    def count(self, size: Dim, same: bool) -> Dim | None:
        """How many there are over an axis of `size`; None where that is not known."""
        if isinstance(size, str):
            return size if same and self.stride == 1 else None
        return -(-size // self.stride) if same else (size - self.width) // self.stride + 1


def windows(c: Context, rank: int, kernel: str = "kernel_size") -> list[Window]:
    """A layer's windows, one for each of `rank` axes."""
    sizes = c.integers(kernel, rank, 2 if kernel == "pool_size" else None)
    strides = c.integers("strides", rank, sizes if kernel == "pool_size" else 1)
    dilations = c.integers("dilation_rate", rank, 1)
    return [Window(*each) for each in zip(sizes, strides, dilations, strict=True)]


def same_padding(sizes: Sequence[Dim], over: Sequence[Window]) -> list[int] | None:
    """The begins and ends of the padding; None where they depend on sizes that are not known."""
    begins, ends = [], []
    for size, window in zip(sizes, over, strict=True):
        if isinstance(size, str) and window.stride > 1:
            return None
        last = size - 1 if isinstance(size, int) else 0
        count = last // window.stride
        total = max(0, count * window.stride + window.width - 1 - last)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return [*begins, *ends]


def _padding(c: Context, sizes: Sequence[Dim], over: Sequence[Window]) -> dict[str, list[int] | str]:
    """ONNX's attributes for the layer's padding."""
    how = c.choice("padding", ("valid", "same", "causal"), "valid")
    if how == "valid":
        return {"pads": [0] * 2 * len(over)}
    if how == "causal":
        if len(over) != 1:
            raise c.error("pads causally, which only a convolution over one axis can")
        return {"pads": [over[0].width - 1, 0]}
    pads = same_padding(sizes, over)
    return {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}


def _convolve(
    c: Context, x: Tensor, weight: ir.Value, bias: ir.Value | None, over: list[Window], group: int, name: str | None
) -> Tensor:
    """Conv of an image; `weight` is [outputs, inputs / group, *kernel]."""
    assert weight.shape is not None
    dims = c.image_dims(x)
    y = c.op.Conv(
        c.images(x),
        weight,
        bias,
        kernel_shape=[w.kernel for w in over],
        strides=[w.stride for w in over],
        dilations=[w.dilation for w in over],
        group=group,
        _name=name,
        **_padding(c, dims[2:], over),
    )
    same = c.choice("padding", ("valid", "same", "causal"), "valid")
    sizes: list[Dim | None] = [
        w.count(d + w.width - 1 if same == "causal" and isinstance(d, int) else d, same == "same")
        for d, w in zip(dims[2:], over, strict=True)
    ]
    return c.image(y, [dims[0], weight.shape.numpy()[0], *sizes])


def _begin(c: Context, rank: int) -> tuple[Tensor, int]:
    """The input and its number of channels."""
    x = c.floats(c.x)
    if x.rank != rank + 2:
        raise c.error(f"needs an input of {rank + 2} dimensions, and has one of {x.rank}")
    return x, c.size(1 if c.channels_first else -1, x)


def _rank(c: Context) -> int:
    """The number of axes in the layer's class's name."""
    digits = [int(d) for d in c.layer.type if d.isdigit()]
    return digits[0]


@layer("Conv1D", "Conv2D", "Conv3D", variables="kernel bias?use_bias")
def convolution(c: Context) -> Tensor:
    """Convolution; Keras's kernel is [*kernel, inputs / groups, filters]."""
    rank = _rank(c)
    x, channels = _begin(c, rank)
    over, filters, groups = windows(c, rank), c.integer("filters"), c.integer("groups", 1)
    if channels % groups or filters % groups:
        raise c.error(f"{channels} channels and {filters} filters do not divide into {groups} groups")
    shape = [*(w.kernel for w in over), channels // groups, filters]
    weight = c.parameter("kernel", shape, [rank + 1, rank, *range(rank)])
    bias = c.parameter("bias", [filters]) if c.has("bias") else None
    return activate(c, _convolve(c, x, weight, bias, over, groups, c.name), c.get("activation"))


def _depthwise(
    c: Context, x: Tensor, channels: int, over: list[Window], bias: ir.Value | None, name: str | None
) -> Tensor:
    """One convolution or more for each channel; Keras's kernel is [*kernel, channels, multiplier]."""
    rank, multiplier = len(over), c.integer("depth_multiplier", 1)
    kernel = [w.kernel for w in over]
    weight = c.parameter(
        "depthwise_kernel",
        [*kernel, channels, multiplier],
        [rank, rank + 1, *range(rank)],
        [channels * multiplier, 1, *kernel],
    )
    return _convolve(c, x, weight, bias, over, channels, name)


@layer("DepthwiseConv1D", "DepthwiseConv2D", variables="depthwise_kernel bias?use_bias")
def depthwise_convolution(c: Context) -> Tensor:
    """Depthwise convolution."""
    rank = _rank(c)
    x, channels = _begin(c, rank)
    bias = c.parameter("bias", [channels * c.integer("depth_multiplier", 1)]) if c.has("bias") else None
    return activate(c, _depthwise(c, x, channels, windows(c, rank), bias, c.name), c.get("activation"))


@layer("SeparableConv1D", "SeparableConv2D", variables="depthwise_kernel pointwise_kernel bias?use_bias")
def separable_convolution(c: Context) -> Tensor:
    """Depthwise convolution, and one with a kernel of one place (Chollet 2017)."""
    rank = _rank(c)
    x, channels = _begin(c, rank)
    y = _depthwise(c, x, channels, windows(c, rank), None, f"{c.name}/depthwise")
    inner, filters = channels * c.integer("depth_multiplier", 1), c.integer("filters")
    ones = [1] * rank
    weight = c.parameter("pointwise_kernel", [*ones, inner, filters], [rank + 1, rank, *range(rank)])
    bias = c.parameter("bias", [filters]) if c.has("bias") else None
    dims = c.image_dims(y)
    value = c.op.Conv(c.images(y), weight, bias, kernel_shape=ones, _name=c.name)
    return activate(c, c.image(value, [dims[0], filters, *dims[2:]]), c.get("activation"))


def _transposed_axis(c: Context, window: Window, same: bool, extra: int | None) -> tuple[int, int]:
    """How much of the full output of a transposed convolution is cut off in front, and the output's size less
    (size − 1) · stride.

    The full output has (size − 1) · stride + width places. "valid" keeps all, and at least a stride's; "same" keeps
    size · stride, or what the output padding says, as the gradient of a convolution that pads.
    """
    width, stride = window.width, window.stride
    if not same:
        return 0, width + (max(width, stride) - width if extra is None else extra)
    kept = stride if extra is None else width % 2 + extra
    ahead = width - 1 - min((kept + width - 2) // 2 + (kept + width - 2) % 2, width - 1)
    return ahead, kept


@layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", variables="kernel bias?use_bias")
def transposed_convolution(c: Context) -> Tensor:
    """Transposed convolution; Keras's kernel is [*kernel, filters, inputs]."""
    rank = _rank(c)
    x, channels = _begin(c, rank)
    over, filters = windows(c, rank), c.integer("filters")
    same = c.choice("padding", ("valid", "same"), "valid") == "same"
    extra = [None] * rank if c.get("output_padding") is None else c.integers("output_padding", rank, least=0)
    places = [_transposed_axis(c, w, same, e) for w, e in zip(over, extra, strict=True)]
    # What is left of the full output behind the cut: more is cut off the end, or zeros are added there.
    ends = [w.width - ahead - kept for w, (ahead, kept) in zip(over, places, strict=True)]
    shape = [*(w.kernel for w in over), filters, channels]
    weight = c.parameter("kernel", shape, [rank + 1, rank, *range(rank)])
    bias = c.parameter("bias", [filters]) if c.has("bias") else None
    dims = c.image_dims(x)
    sizes: list[Dim | None] = [
        (d - 1) * w.stride + kept if isinstance(d, int) else None
        for d, w, (_, kept) in zip(dims[2:], over, places, strict=True)
    ]
    y = c.op.ConvTranspose(
        c.images(x),
        weight,
        bias,
        kernel_shape=[w.kernel for w in over],
        strides=[w.stride for w in over],
        dilations=[w.dilation for w in over],
        pads=[ahead for ahead, _ in places] + [max(0, end) for end in ends],
        output_padding=[max(0, -end) for end in ends],
        _name=c.name,
    )
    return activate(c, c.image(y, [dims[0], filters, *sizes]), c.get("activation"))
