"""Pooling. Averages with "same" padding leave the padding out, as TensorFlow does."""

from __future__ import annotations

from converters.keras.context import Context, layer
from converters.keras.layers.convolution import same_padding, windows
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__: list[str] = []


@layer(
    *(f"MaxPooling{n}D" for n in (1, 2, 3)),
    *(f"AveragePooling{n}D" for n in (1, 2, 3)),
    *(f"MaxPool{n}D" for n in (1, 2, 3)),
    *(f"AvgPool{n}D" for n in (1, 2, 3)),
)
def pooling(c: Context) -> Tensor:
    """Maxima or averages of windows."""
    rank = int(c.layer.type[-2])
    x = c.floats(c.x)
    value = c.images(x, rank + 2)
    over = windows(c, rank, "pool_size")
    dims = c.image_dims(x)
    same = c.choice("padding", ("valid", "same"), "valid") == "same"
    pads = same_padding(dims[2:], over) if same else [0] * 2 * rank
    attributes = {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}
    kind = "MaxPool" if c.layer.type.startswith("Max") else "AveragePool"
    y = getattr(c.op, kind)(
        value, kernel_shape=[w.kernel for w in over], strides=[w.stride for w in over], _name=c.name, **attributes
    )
    sizes: list[Dim | None] = [w.count(d, same) for w, d in zip(over, dims[2:], strict=True)]
    return c.image(y, [*dims[:2], *sizes])


@layer(
    *(f"GlobalMaxPooling{n}D" for n in (1, 2, 3)),
    *(f"GlobalAveragePooling{n}D" for n in (1, 2, 3)),
    *(f"GlobalMaxPool{n}D" for n in (1, 2, 3)),
    *(f"GlobalAvgPool{n}D" for n in (1, 2, 3)),
)
def global_pooling(c: Context) -> Tensor:
    """The maximum or average of each channel."""
    rank = int(c.layer.type[-2])
    if c.layer.type in ("GlobalAveragePooling1D", "GlobalAvgPool1D"):
        c.no_mask()
    x = c.floats(c.x)
    value, dims = c.images(x, rank + 2), c.image_dims(x)
    kind = "GlobalMaxPool" if "Max" in c.layer.type else "GlobalAveragePool"
    y = getattr(c.op, kind)(value, _name=c.name)
    ones = [1] * rank
    if c.get("keepdims", False):
        return c.image(y, [*dims[:2], *ones]).unmasked()
    c.image(y, [*dims[:2], *ones])
    return c.tensor(c.op.Flatten(y, axis=1), dims[:2]).unmasked()


@layer(*(f"Adaptive{kind}Pooling{n}D" for kind in ("Average", "Max") for n in (1, 2, 3)))
def adaptive_pooling(c: Context) -> Tensor:
    """Pooling to a number of windows that divides the size."""
    rank = int(c.layer.type[-2])
    x = c.floats(c.x)
    value, dims = c.images(x, rank + 2), c.image_dims(x)
    targets = c.integers("output_size", rank)
    kernel = []
    for size, target in zip(dims[2:], targets, strict=True):
        if not isinstance(size, int) or size % target:
            raise c.error(f"pools {size} places to {target} windows, which are of different widths")
        kernel.append(size // target)
    kind = "MaxPool" if "Max" in c.layer.type else "AveragePool"
    y = getattr(c.op, kind)(value, kernel_shape=kernel, strides=kernel, _name=c.name)
    return c.image(y, [*dims[:2], *targets])
