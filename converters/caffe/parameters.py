"""The parameters of a Caffe net as initializers: from its weights' file or from fillers, shared where Caffe shares."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converters.caffe.caffe_pb2 import FillerParameter, LayerParameter
from converters.caffe.fillers import FILLERS, fill, least_rank
from converters.caffe.read import Source
from surgery.emit import initializer
from surgery.errors import SurgeryError, nearest

if TYPE_CHECKING:
    from converters.caffe.context import Context

__all__ = ["Parameters"]

_MOST_FILLED = 2**28  # numbers; the largest nets of the Model Zoo have half as many
_log = logging.getLogger(__name__)


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(d) for d in shape) or "scalar"


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without the ones in front that four-dimensional blobs of the old formats have."""
    first = next((i for i, d in enumerate(shape) if d != 1), len(shape))
    return tuple(shape[first:])


class Parameters:
    """Makes the initializers of one graph.

    Args:
        source: The network as read.
        graph: The graph to register them in.
        seed: For those that no file gives.
    """

    def __init__(self, source: Source, graph: ir.Graph, seed: int) -> None:
        self._source = source
        self._graph = graph
        self._seed = seed
        self._shared: dict[str, ir.Value] = {}
        self._filled = 0
        self._asked: dict[str, int] = {}  # layer → how many blobs it has
        self._missing: dict[str, None] = {}

    def blob(self, c: Context, index: int, role: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Returns blob `index` of a layer, checked against `shape`; None where the file has none for the layer.

        Raises:
            SurgeryError: The file's blob has another shape.
        """
        self._ask(c, index)
        blobs = self._source.weights.get(c.name)
        if not blobs:
            return None
        if index >= len(blobs):
            raise c.error(
                f"needs blob {index} ({role}, {_shown(shape)}), and {self._source.weights_path} has {len(blobs)} for it"
            )
        blob = blobs[index]
        if _without_ones(blob.shape) != _without_ones(shape):
            raise c.error(
                f"blob {index} ({role}) is {_shown(blob.shape)} in {self._source.weights_path} and must be "
                f"{_shown(shape)}; the weights are of another network, or the definition was changed"
            )
        return blob.data.reshape(shape)

    def _ask(self, c: Context, index: int) -> None:
        self._asked[c.name] = max(self._asked.get(c.name, 0), index + 1)

    def shape(self, c: Context, index: int) -> tuple[int, ...] | None:
        """Returns the shape that blob `index` of a layer has in the file."""
        blobs = self._source.weights.get(c.name, [])
        return blobs[index].shape if index < len(blobs) else None

    def get(
        self,
        c: Context,
        index: int,
        role: str,
        shape: tuple[int, ...],
        filler: FillerParameter,
        blob_shape: tuple[int, ...],
    ) -> ir.Value:
        """See `Context.parameter`."""
        if min(blob_shape, default=1) < 1:
            raise c.error(f"its {role} would be {_shown(blob_shape)}")
        name = c.spec(index).name
        if name and name in self._shared:
            self._ask(c, index)
            value = self._reuse(c, name, role, shape)
        else:
            data = self.blob(c, index, role, blob_shape)
            if data is None:
                data = self._fill(c, role, blob_shape, filler)
            value = self.add(c, role, np.ascontiguousarray(data.reshape(shape)))
            if name:
                self._shared[name] = value
        c.mark(value, index)
        return value

    def _reuse(self, c: Context, name: str, role: str, shape: tuple[int, ...]) -> ir.Value:
        value = self._shared[name]
        assert value.shape is not None
        have = value.shape.numpy()
        if math.prod(have) != math.prod(shape):
            raise c.error(f"its {role} ({_shown(shape)}) shares the parameter {name!r}, which is {_shown(have)}")
        return value if have == shape else c.reshape(value, shape)

    def add(self, c: Context, role: str, data: np.ndarray) -> ir.Value:
        """Registers an initializer ``<layer>.<role>``."""
        return initializer(self._graph, c.builder.unique(f"{c.name}.{role}"), data)

    def _fill(self, c: Context, role: str, shape: tuple[int, ...], filler: FillerParameter) -> np.ndarray:
        if self._source.weights:
            self._missing[c.name] = None
        self._filled += math.prod(shape)
        if self._filled > _MOST_FILLED:
            raise c.error(
                f"its {role} is {_shown(shape)}: with it the net has more than {_MOST_FILLED:,} parameters to fill; "
                "that is a mistake in the definition, or give the weights"
            )
        if filler.type not in FILLERS:
            raise c.error(f"no filler {filler.type!r} is known{nearest(filler.type, FILLERS)}")
        if len(shape) < least_rank(filler):
            raise c.error(f"its {role} is {_shown(shape)}, and the filler {filler.type!r} needs more dimensions")
        return fill(filler, shape, self._seed, f"{c.name}.{role}")

    def finish(self, layers: Sequence[LayerParameter]) -> None:
        """Says which of `layers` the file had no weights for.

        Raises:
            SurgeryError: It had none for any layer, or more than a layer takes.
        """
        path, weights = self._source.weights_path, self._source.weights
        for layer in layers:
            count, takes = len(weights.get(layer.name, ())), self._asked.get(layer.name, 0)
            if count > takes:
                raise SurgeryError(
                    f"{self._source.path}: layer {layer.name!r} ({layer.type}): {path} has {count} blobs for it, "
                    f"and it takes {takes}; the weights are of another network, or the definition was changed"
                )
        if path is None and self._filled:
            _log.warning("%s: no weights lie next to it; its parameters start from their fillers", self._source.path)
        if not self._missing:
            return
        names = ", ".join(self._missing)
        if not any(name in weights for name in self._asked):
            raise SurgeryError(
                f"{path}: has weights for none of the layers of {self._source.path} ({names}), but for "
                f"{', '.join(weights)}; it belongs to another network"
            )
        _log.warning("%s has no weights for %s: they start from their fillers", path, names)
