"""Convert networks of other frameworks to ONNX, keeping what training needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

if TYPE_CHECKING:
    from converters.card import Card
    from converters.compare import Verification

__all__ = ["convert", "resolve", "verify"]


def convert(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> ir.Model:
    """Converts a network, whose framework is recognized, to ONNX (operator set 21 at most, IR version 10).

    Where the folder of `source` has a card.yaml that names it, labels and preprocessing come from there; for a name
    that is no file, that of `weights`.

    Args:
        source: The network: a file or folder of one of the frameworks, PyTorch's ``module:factory``, or a folder with
            one network in it or with a card.yaml that names its files.
        weights: The file with its weights, where that is another one and does not lie next to it.
        output: Where to save the model; not saved without.
        labels: Class names of the output, in order; or a text file with one a line.
        preprocessing: How images become the network's input, where the source does not say.
        **options: The options of the framework's converter, such as `converters.caffe.convert_caffe`.

    Returns:
        The model, checked, with shapes inferred, and run once where ONNX Runtime is installed.

    Raises:
        SurgeryError: The source is not recognized, damaged, or has what ONNX cannot express.
    """
    from converters.finish import apply_labels, apply_preprocessing, check
    from converters.registry import find_converter

    path, options, card = resolve(source, {**options, "weights": weights})
    model = find_converter(path)(path, options)
    if labels is None and card is not None:
        labels = card.labels
    if preprocessing is None and card is not None:
        preprocessing = card.preprocessing
    if labels is not None:
        apply_labels(model, labels)
    if preprocessing is not None:
        apply_preprocessing(model, preprocessing)
    check(model, path)
    if output is not None:
        from surgery.io import save

        save(model, output)
    return model


def verify(
    source: str | os.PathLike[str], model: ir.Model, *, weights: str | os.PathLike[str] | None = None, **options: Any
) -> Verification:
    """Compares `model` with what the source's own framework computes; see `converters.compare.compare`."""
    from converters.compare import compare

    return compare(source, model, weights=weights, **options)


def resolve(source: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[Path, dict[str, Any], Card | None]:
    """Returns what to convert, with which options, and the card that describes it, if any.

    Raises:
        SurgeryError: There is no such file or name, or it is not clear which file of a folder is meant.
    """
    from converters.card import read_card
    from converters.registry import find_converter, find_network

    path = Path(source)
    options = {key: value for key, value in options.items() if key != "weights" or value is not None}
    if "weights" in options:
        options["weights"] = Path(options["weights"])
        if not options["weights"].is_file():
            raise SurgeryError(f"{options['weights']}: no such file")
    if not path.exists():
        find_converter(path)
        return path, options, read_card(options["weights"]) if "weights" in options else None
    card = read_card(path)
    if path.is_dir():
        definition, beside = card.find(path) if card is not None else (None, None)
        path = definition or find_network(path)
        if beside is not None:
            options.setdefault("weights", beside)
    return path, options, card
