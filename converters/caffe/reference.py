"""What OpenCV's own reader of Caffe networks computes, to compare a conversion with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from converters.registry import load_extra, reference
from surgery.errors import SurgeryError

__all__ = ["run_caffe"]


@reference("Caffe")
def run_caffe(source: Path, inputs: dict[str, np.ndarray], *, weights: Path | None = None) -> dict[str, np.ndarray]:
    """Returns the outputs by the names of their tops.

    Raises:
        SurgeryError: OpenCV 4 is not installed or cannot read the network, or no weights lie next to it.
    """
    from converters.caffe.read import find_files, read_source

    cv2 = load_extra("cv2", "caffe-verify", "comparing with Caffe's networks as OpenCV reads them")
    definition, weights = find_files(source, weights)
    if weights is None:
        raise SurgeryError(f"{source}: has no weights, so there is nothing to compare; name them with --weights")
    net = read_source(source, weights).net
    tops = {layer.name: layer.top[0] for layer in net.layer if layer.top}
    with tempfile.TemporaryDirectory() as folder:
        if definition is None:
            definition = Path(folder) / "net.prototxt"
            definition.write_text(text_format.MessageToString(net))
        try:
            reader = cv2.dnn.readNetFromCaffe(str(definition), str(weights))
            for name, array in inputs.items():
                reader.setInput(array, name if len(inputs) > 1 else "")
            names = reader.getUnconnectedOutLayersNames()
            found = reader.forward(names)
        except cv2.error as error:
            reason = " ".join(str(error).split())
            raise SurgeryError(f"{source}: OpenCV {cv2.__version__} cannot run it ({reason})") from error
    return {tops.get(name, name): array for name, array in zip(names, found, strict=True)}
