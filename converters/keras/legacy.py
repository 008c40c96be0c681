"""Keras 1's names for layers and their arguments, and how older versions and backends stored weights.

The names follow Keras 2.0's own tables (its ``legacy/interfaces.py``), the weights its
``preprocess_weights_for_loading``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.keras.hdf5 import Array
from surgery.errors import SurgeryError

__all__ = ["looks_like_keras_1", "stored_count", "upgrade_arrays", "upgrade_layer"]

_TYPES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
}
_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate", "dot": "Dot"}
_RECURRENT = ("LSTM", "GRU", "SimpleRNN")
# Keras 1's argument → Keras 2's, whatever the layer.
_ARGUMENTS = {
    "nb_filter": "filters",
    "filter_length": "kernel_size",
    "border_mode": "padding",
    "subsample": "strides",
    "subsample_length": "strides",
    "bias": "use_bias",
    "p": "rate",
    "sigma": "stddev",
    "pool_length": "pool_size",
    "stride": "strides",
    "atrous_rate": "dilation_rate",
    "concat_axis": "axis",
    "dot_axes": "axes",
    "inner_activation": "recurrent_activation",
    "W_regularizer": "kernel_regularizer",
    "U_regularizer": "recurrent_regularizer",
    "b_regularizer": "bias_regularizer",
    "W_constraint": "kernel_constraint",
    "U_constraint": "recurrent_constraint",
    "b_constraint": "bias_constraint",
}
_SIZES = (("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3"))
_ORDERINGS = {"th": "channels_first", "tf": "channels_last"}
# How a kernel [filters, inputs, …] of Keras 1 with the channels first becomes […, inputs, filters].
_FIRST = {"Conv2D": (2, 3, 1, 0), "Conv3D": (2, 3, 4, 1, 0), "SeparableConv2D": (2, 3, 1, 0)}
_SPATIAL = {"Conv1D": 1, "Conv2D": 2, "Conv3D": 3, "Conv2DTranspose": 2, "SeparableConv2D": 2}


def looks_like_keras_1(configs: list[dict[str, Any]]) -> bool:
    """Whether layers' arguments have names that only Keras 1 has; for files that do not say their version."""
    old = {"nb_filter", "border_mode", "W_regularizer", "dim_ordering", "p", "W_constraint"}
    return any(old & config.keys() for config in configs)


def upgrade_layer(type: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a layer of Keras 1 by Keras 2's names.

    Raises:
        SurgeryError: It has no equal in Keras 2.
    """
    if type == "Merge":
        return _merge(config)
    if type == "TimeDistributedDense":
        return "TimeDistributed", {"name": config.get("name"), "layer": {"class_name": "Dense", "config": config}}
    type, old = _TYPES.get(type, type), dict(config)
    new = {_ARGUMENTS.get(key, key): value for key, value in old.items()}
    for names in _SIZES:
        if all(name in old for name in names):
            new["kernel_size"] = [old[name] for name in names]
    if "dim_ordering" in old:
        new["data_format"] = _ORDERINGS.get(old["dim_ordering"], old["dim_ordering"])
    if type in _FIRST and new.get("data_format") == "channels_first":
        new["kernel_constraint"] = _turned(new.get("kernel_constraint"), _FIRST[type])
    if "output_dim" in old and type in ("Dense", *_RECURRENT):
        new["units"] = old["output_dim"]
    if type == "UpSampling1D" and "length" in old:
        new["size"] = old["length"]
    if type == "BatchNormalization" and old.get("mode", 0) == 1:
        raise SurgeryError("mode 1 normalizes each example by itself, which later Keras versions do not have")
    return type, new


def _turned(constraint: Any, perm: tuple[int, ...]) -> Any:
    """A kernel's constraint with its axes where `perm` puts them."""
    if not isinstance(constraint, dict) or "axis" not in constraint:
        return constraint
    axis = constraint["axis"]
    axes = [axis] if isinstance(axis, int) else axis
    return constraint | {"axis": [perm.index(a % len(perm)) for a in axes]}


def _merge(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    mode = config.get("mode", "sum")
    if config.get("layers"):
        raise SurgeryError("merges Sequential models, each with an input of its own; write it as a functional Model")
    if mode not in _MERGES:
        raise SurgeryError(f"merges with mode {mode!r}, which cannot be converted")
    return _MERGES[mode], {
        "name": config.get("name"),
        "axis": config.get("concat_axis"),
        "axes": config.get("dot_axes"),
    }


def upgrade_arrays(
    type: str, config: dict[str, Any], arrays: list[Array], version: int, backend: str | None
) -> list[Array]:
    """Returns the weights of one layer as Keras 2 and 3 arrange them.

    Args:
        type: The layer's class, by Keras 2's name.
        config: Its arguments, likewise.
        arrays: Its weights as stored.
        version: Keras's major version.
        backend: On what it was trained: Theano's kernels are convolved, all others' correlated.
    """
    if version == 1:
        if type in _SPATIAL and arrays:
            arrays = [_kernel_1(type, config, arrays[0]), *arrays[1:]]
        if type in _RECURRENT:
            arrays = _gates_1(type, arrays)
    if backend == "theano" and type in _SPATIAL and arrays and type != "SeparableConv2D":
        axes = tuple(range(_SPATIAL[type]))
        arrays = [_changed(arrays[0], arrays[0].shape, lambda a: np.flip(a, axes)), *arrays[1:]]
    return arrays


def _changed(array: Array, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Array:
    return Array(array.name, shape, lambda: change(array.read()))


def _transposed(array: Array, perm: tuple[int, ...]) -> Array:
    if len(array.shape) != len(perm):
        return array  # the check of its shape will tell
    return _changed(array, tuple(array.shape[p] for p in perm), lambda a: a.transpose(perm))


def _kernel_1(type: str, config: dict[str, Any], kernel: Array) -> Array:
    first = config.get("data_format") == "channels_first"
    if type == "Conv1D":
        if len(kernel.shape) != 4:
            return kernel
        if kernel.shape[1] != 1 or kernel.shape[3] != config.get("filters"):  # Theano's order
            kernel = _transposed(kernel, (2, 3, 1, 0))
        shape = (kernel.shape[0], *kernel.shape[2:])
        return _changed(kernel, shape, lambda a: a[:, 0])
    if type == "Conv2DTranspose":
        return _transposed(kernel, (2, 3, 0, 1) if first else (0, 1, 3, 2))
    return _transposed(kernel, _FIRST[type]) if first else kernel


# Where Keras 1's separate gates, each W, U, b, go in Keras 2's joined weights.
_GATES = {"LSTM": (0, 2, 1, 3), "GRU": (0, 1, 2)}  # stored i, c, f, o → i, f, c, o; z, r, h as they are


def stored_count(type: str, config: dict[str, Any], version: int) -> int | None:
    """How many arrays a recurrent layer of Keras 1 is stored as; None for all other layers."""
    if version == 1 and type in _GATES and config.get("consume_less") != "gpu":
        return 3 * len(_GATES[type])
    return None


def _gates_1(type: str, arrays: list[Array]) -> list[Array]:
    order = _GATES.get(type)
    if order is None or len(arrays) != 3 * len(order):
        return arrays
    return [_joined([arrays[3 * gate + part] for gate in order]) for part in range(3)]


def _joined(arrays: list[Array]) -> Array:
    first = arrays[0]
    if any(a.shape != first.shape for a in arrays) or not first.shape:
        return first
    shape = (*first.shape[:-1], first.shape[-1] * len(arrays))
    return Array(first.name, shape, lambda: np.concatenate([a.read() for a in arrays], axis=-1))
