"""What OpenCV's own reader of Torch7 networks computes, to compare a conversion with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.registry import load_extra, reference
from surgery.errors import SurgeryError

__all__ = ["run_torch7"]


@reference("Torch7")
def run_torch7(source: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs.

    Raises:
        SurgeryError: OpenCV 4 is not installed or cannot read the network.
    """
    from converters.torch7.encoding import is_ascii

    cv2 = load_extra("cv2", "caffe-verify", "comparing with Torch7's networks as OpenCV reads them")
    if len(inputs) > 1:
        raise SurgeryError(f"{source}: OpenCV reads Torch7 networks of one input, and this one has {', '.join(inputs)}")
    with source.open("rb") as file:
        binary = not is_ascii(file.read(1))
    try:
        reader = cv2.dnn.readNetFromTorch(str(source), binary)
        for array in inputs.values():
            reader.setInput(array)
        return list(reader.forward(reader.getUnconnectedOutLayersNames()))
    except cv2.error as error:
        reason = " ".join(str(error).split())
        raise SurgeryError(f"{source}: OpenCV {cv2.__version__} cannot run it ({reason})") from error
