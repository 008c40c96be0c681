"""Conversion of Keras networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.options import Shape, custom_function, input_shapes
from converters.registry import converter, reference
from surgery.errors import SurgeryError

__all__ = ["convert_keras"]


def _is_keras(path: Path) -> bool:
    from converters.keras.read import is_keras

    return is_keras(path)


def _networks(folder: Path) -> list[Path]:
    from converters.keras.read import networks

    return networks(folder)


@converter("Keras", recognizes=_is_keras, networks=_networks)
def convert_keras(
    source: Path,
    *,
    weights: Path | None = None,
    shape: Shape | None = None,
    batch: int | None = None,
    layout: str = "keras",
    backend: str | None = None,
    custom: str | Callable[..., Any] | None = None,
    via: str | None = None,
) -> ir.Model:
    """Converts a Keras network (versions 1, 2 and 3; Sequential or functional) to ONNX, without Keras or TensorFlow.

    The operator that does a layer's work has the layer's name, behind those of the models that the layer is in, as
    ``model/layer``; so has the layer's output. Variables are ``<layer>/<variable>`` by Keras's names, such as
    ``conv1/kernel``, arranged as ONNX needs them. The graph has the channels first; where Keras has them last, the
    input is transposed once. What Keras knows for training becomes marks: ``trainable``, constraints, L1 and L2
    regularizers. Dropout stays; noise and random augmentation,
    which only training has, are left out and told.

    Args:
        source: The ``.keras``, ``.h5`` or ``.hdf5`` file, or the ``.json`` of a configuration.
        weights: The HDF5 file with the weights, where the source has none and they are not found by its name.
        shape: The input's shape without the batch, in Keras's order, in place of the network's: ``224x224x3``, or
            ``?x?x3`` where height and width may be anything. By input name where there are several.
        batch: Fixes the size of the batch.
        layout: "keras" leaves the inputs as Keras has them; "nchw" puts the channels of images first, so that nothing
            is transposed. Outputs are always as Keras has them.
        backend: On what a file of Keras 1 was trained, which it does not say: "theano" turns kernels around.
        custom: Converts layers that are not known: ``module:function`` or a function, which is given a
            `converters.keras.context.Context` and returns the layer's outputs. Their variables are named 0, 1, …, in
            the order of the file. Code in the file is never run.
        via: "tf2onnx" converts with TensorFlow and tf2onnx in place of all this: for models that are Python code. What
            only training needs is lost.

    Raises:
        SurgeryError: A file is damaged or something else, a layer unknown, weights do not fit the network.
    """
    from converters.keras.build import Builder
    from converters.keras.read import open_source

    for name, value, known in (("layout", layout, ("keras", "nchw")), ("via", via, (None, "tf2onnx"))):
        if value not in known:
            raise SurgeryError(f"{name} is {value!r} and must be {' or '.join(str(k) for k in known if k)}")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise SurgeryError(f"batch is {batch!r} and must be a whole number, 1 or more")
    if via is not None:
        others = {"weights": weights, "shape": shape, "batch": batch, "custom": custom, "backend": backend}
        others["layout"] = None if layout == "keras" else layout
        if ignored := [name for name, value in others.items() if value is not None]:
            raise SurgeryError(f"{source}: --via tf2onnx takes no {', '.join(ignored)}: Keras and tf2onnx decide")
        from converters.keras.fallback import convert_with_tf2onnx

        return convert_with_tf2onnx(source)
    with open_source(source, weights, backend) as read:
        builder = Builder(
            source,
            read.network,
            read.weights,
            read.weights_path,
            read.version,
            input_shapes(shape),
            batch,
            "nchw" if layout == "nchw" else "keras",
            custom_function(custom),
        )
        model = builder.build()
    from converters.keras.applications import describe

    describe(model, read.network, layout)
    return model


@reference("Keras")
def run_keras(
    source: Path, inputs: dict[str, np.ndarray], *, weights: Path | None = None, layout: str = "keras"
) -> list[np.ndarray]:
    """Runs a network in Keras itself."""
    from converters.keras.fallback import run_in_keras

    return run_in_keras(source, inputs, weights, layout)
