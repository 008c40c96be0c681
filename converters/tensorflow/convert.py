"""Conversion of TensorFlow networks, through tf2onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from converters.options import Shape
from converters.registry import converter
from surgery.errors import SurgeryError

__all__ = ["convert_tensorflow", "names"]


def _is_tensorflow(path: Path) -> bool:
    from converters.tensorflow.source import is_tensorflow

    return is_tensorflow(path)


def _networks(folder: Path) -> list[Path]:
    """A checkpoint has several files, of which one stands for it."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in (".pb", ".meta")]


@converter("TensorFlow", recognizes=_is_tensorflow, networks=_networks)
def convert_tensorflow(
    source: Path,
    *,
    shape: Shape | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature: str | None = None,
    batch: int | None = None,
) -> ir.Model:
    """Converts a TensorFlow network to ONNX (operator set 18).

    Variables become initializers of their names. A layer is named as the scope of its variables, else as its node.
    Dropout and batch normalization with its statistics stay, also where TensorFlow 1 has written them out. Padding is
    explicit. An input has TensorFlow's own layout, [N, height, width, channels] for images; its first dimension may
    have any size, "N", where the graph does not fix it. What says whether the network trains is set to false.

    Nothing of the source is run but what TensorFlow computes from constants.

    Args:
        source: A SavedModel's folder, a frozen graph (``.pb``), or a checkpoint's ``.meta`` with its values beside it.
        shape: The input's shape without the batch, where the graph leaves it open: ``224x224x3``. By input name where
            there are several.
        inputs: The input tensors, ``name`` or ``name:0``. By default a SavedModel's are those of its signature, others'
            the placeholders.
        outputs: The output tensors. By default those of the signature, or what nothing else in the graph reads; of a
            graph that trains, what comes last before the loss.
        signature: Which signature of a SavedModel, by default ``serving_default``.
        batch: Fixes the size of the batch.

    Raises:
        SurgeryError: TensorFlow is not installed, a file is damaged or something else, or has what cannot be converted.
    """
    from converters.options import input_shapes
    from converters.tensorflow.translate import translate

    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise SurgeryError(f"batch is {batch!r} and must be a whole number, 1 or more")
    ends = [names(given, what) for given, what in ((inputs, "inputs"), (outputs, "outputs"))]
    return translate(source, ends[0], ends[1], signature, input_shapes(shape), batch)


def names(given: Sequence[str] | str | None, what: str) -> list[str] | None:
    """The names of tensors that an option gives, as a list or with commas between; None where it is not given."""
    if given is None:
        return None
    found = given.split(",") if isinstance(given, str) else given
    if not isinstance(found, Sequence) or not found or not all(isinstance(name, str) and name for name in found):
        raise SurgeryError(f"{what} is {given!r}; write names of tensors: --option {what}=a,b")
    return list(found)
