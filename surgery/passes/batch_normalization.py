"""What training changes of a BatchNormalization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import STATISTICS
from surgery.marks import set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["BatchNormalization"]

_WORDS = {
    "frozen": "keeps scale, shift and statistics",
    "fixed_statistics": "keeps its statistics, trains scale and shift",
    "trained": "follows the batches, trains scale and shift",
}


@pass_dataclass
class BatchNormalization(Pass):
    """Says what training changes of the network's BatchNormalizations (Ioffe and Szegedy 2015). Idempotent.

    Small batches and few data speak for `frozen` or `fixed_statistics`: a batch's own statistics are then a bad guess.
    The training setting `reestimate_batchnorm` measures the statistics on the new data first, whatever the policy.

    Attributes:
        policy: ``frozen``: nothing; ``fixed_statistics``: scale and shift, while it normalizes by the statistics that
            it has; ``trained``: these, while it normalizes by each batch's statistics, whose average it keeps.
        layers: Which layers; those of them that are no BatchNormalization are left as they are.
    """

    shorthand: ClassVar[str | None] = "policy"

    policy: Literal["frozen", "fixed_statistics", "trained"]
    layers: Selector = "all"

    def edit(self, model: ir.Model) -> Iterator[Change]:
        norms = [layer for layer in select(model, self.layers) if layer.op_type == "BatchNormalization"]
        if not norms:
            raise SurgeryError(f"batch_normalization: none of the selected layers is one ({self.layers!r})")
        for layer in norms:
            changed = False
            for role, parameter in layer.parameters.items():
                kept = self.policy == "frozen" or (self.policy == "fixed_statistics" and role in STATISTICS)
                changed |= set_marks(parameter, trainable=not kept)
            if changed:
                yield Change(layer.name, _WORDS[self.policy])
