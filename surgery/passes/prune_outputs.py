"""Remove outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field

from surgery.layers import find_output
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import prune

__all__ = ["PruneOutputs"]


@pass_dataclass
class PruneOutputs(Pass):
    """Removes outputs, and what only they need. Idempotent.

    Attributes:
        keep: The names of the outputs that stay.
    """

    shorthand: ClassVar[str | None] = "keep"

    keep: str | Annotated[list[str], Field(min_length=1)]

    def edit(self, model: ir.Model) -> Iterator[Change]:
        graph = model.graph
        kept = {find_output(model, name) for name in ([self.keep] if isinstance(self.keep, str) else self.keep)}
        gone = [o for o in graph.outputs if o not in kept]
        if not gone:
            return
        count = len(graph)
        graph.outputs[:] = [o for o in graph.outputs if o in kept]
        inputs = prune(model)
        for output in gone:
            yield Change(str(output.name), "output removed")
        yield Change("model", f"{count - len(graph)} operators that only they needed removed")
        for name in inputs:
            yield Change(name, "input removed, nothing needs it")
