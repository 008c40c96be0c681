"""Conversion of Caffe networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converters.options import Shape, custom_function, input_shapes
from converters.registry import converter
from surgery.errors import SurgeryError

__all__ = ["convert_caffe"]


def _is_caffe(path: Path) -> bool:
    from converters.caffe.read import is_caffe

    return is_caffe(path)


def _networks(folder: Path) -> list[Path]:
    from converters.caffe.read import networks

    return networks(folder)


@converter("Caffe", recognizes=_is_caffe, networks=_networks)
def convert_caffe(
    source: Path,
    *,
    weights: Path | None = None,
    shape: Shape | None = None,
    batch: int | None = None,
    seed: int = 0,
    custom: str | Callable[..., Any] | None = None,
) -> ir.Model:
    """Converts a Caffe network (formats V0, V1 and the current one) to ONNX.

    The operator that does a layer's work has the layer's name. A value has the name of its top; where a layer works in
    place, what the top held before gets the name ``<top>/<layer that made it>``. Parameters are ``<layer>.weight``,
    ``.bias``, ``.slope``, ``.scale``, ``.mean``, ``.var`` in Caffe's layout; ``lr_mult`` and ``decay_mult`` are their
    marks, and what has ``lr_mult: 0`` is frozen. The first dimension of an input, Caffe's batch, is "N" and may have
    any size; the others are the definition's. RNN and LSTM are unrolled over time, as in Caffe, so a net that has them
    keeps all of the definition's sizes.

    What only training has is left out: layers of the TRAIN phase, losses (SoftmaxWithLoss and
    SigmoidCrossEntropyLoss leave their Softmax and Sigmoid as outputs), Accuracy. Loss weights and ``propagate_down``
    go too: say in the recipe which output to train and what to freeze. Data layers become inputs, their
    ``transform_param`` the preprocessing, but for random mirroring. Parameters without a file of weights get their
    fillers, "xavier" where the definition has none for a weight.

    Args:
        source: The ``.prototxt`` or the ``.caffemodel``; what belongs together is found by name.
        weights: The ``.caffemodel`` (or ``.caffemodel.h5``), where it is not found next to the definition.
        shape: The input's shape without the batch, in place of the definition's: ``3x224x224``, or ``3x?x?`` where
            height and width may be anything. By input name where there are several: ``data=3x224x224,info=3``, or a
            mapping.
        batch: Fixes the size of the batch.
        seed: Seed of the fillers.
        custom: Converts layers of types that are not known: ``module:function`` or a function, which is given a
            `converters.caffe.context.Context` and returns the layer's tops. Fields that only a fork knows are allowed
            then; the function finds them in the context's `fields`.

    Raises:
        SurgeryError: A file is damaged or something else, a layer unknown, weights do not fit the definition.
    """
    from converters.caffe.build import Builder
    from converters.caffe.read import read_source

    for name, number, least in (("seed", seed, 0), ("batch", batch, 1)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise SurgeryError(f"{name} is {number!r} and must be a whole number, {least} or more")
    read = read_source(source, weights, lenient=custom is not None)
    return Builder(read, input_shapes(shape), batch, seed, custom_function(custom)).build()
