"""Cut a network off behind a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field

from surgery.layers import find_layer
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import prune

__all__ = ["Cut"]


@pass_dataclass
class Cut(Pass):
    """Keeps the part up to a layer, whose output becomes the network's only one: a feature extractor. Idempotent.

    Attributes:
        layer: The last layer to keep; several give as many outputs.
    """

    shorthand: ClassVar[str | None] = "layer"

    layer: str | Annotated[list[str], Field(min_length=1)]

    def edit(self, model: ir.Model) -> Iterator[Change]:
        graph = model.graph
        names = [self.layer] if isinstance(self.layer, str) else self.layer
        kept = list(dict.fromkeys(find_layer(model, name).output for name in names))
        if list(graph.outputs) == kept:
            return
        count, weights = len(graph), len(graph.initializers)
        graph.outputs[:] = kept
        inputs = prune(model)
        removed = f"{count - len(graph)} operators and {weights - len(graph.initializers)} weights"
        yield Change("model", f"ends with {', '.join(str(v.name) for v in kept)}; {removed} behind it removed")
        for name in inputs:
            yield Change(name, "input removed, nothing needs it")
