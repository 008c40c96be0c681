"""Run a pass from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import onnx_ir as ir
import onnx_ir.passes.common
from pydantic import Field, ValidationError

from surgery.errors import SurgeryError, nearest
from surgery.passes.base import Change, Pass, Result, pass_dataclass
from surgery.passes.loading import load_object

__all__ = ["Run"]


@pass_dataclass
class Run(Pass):
    """Runs a pass of your own, or one of onnx-ir's. It runs code: only use recipes that you trust.

    Idempotent if that pass is.

    Attributes:
        target: A class ``package.module:Class``, looked for in the current folder too; or the name of one of
            onnx-ir's, such as DeduplicateInitializersPass.
        options: What the class is called with.
    """

    shorthand: ClassVar[str | None] = "target"

    target: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")]
    options: dict[str, Any] = Field(default_factory=dict)

    def edit(self, model: ir.Model) -> Iterator[Change]:
        kind = self._kind()
        if not (isinstance(kind, type) and issubclass(kind, ir.passes.PassBase)):
            raise SurgeryError(f"run: {self.target} is no pass (a class derived from surgery.passes.Pass or onnx_ir's)")
        try:
            step = kind(**self.options)
        except (TypeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise SurgeryError(f"run: {self.target} does not take {self.options} ({reason})") from error
        try:
            result = step(model)
        except SurgeryError:
            raise
        except Exception as error:  # whatever the pass does
            raise SurgeryError(f"run: {self.target} fails: {type(error).__name__}: {error}") from error
        if result.model is not model:
            model.graph = result.model.graph
            model.functions.clear()
            model.functions.update(result.model.functions)
            model.metadata_props.clear()
            model.metadata_props.update(result.model.metadata_props)
        if isinstance(result, Result):
            yield from result.changes
        elif result.modified:
            yield Change("model", f"changed by {self.target}")

    def _kind(self) -> Any:
        if ":" in self.target:
            return load_object(self.target)
        if not hasattr(onnx_ir.passes.common, self.target):
            known = onnx_ir.passes.common.__all__
            raise SurgeryError(f"run: onnx-ir has no pass {self.target!r}{nearest(self.target, known)}")
        return getattr(onnx_ir.passes.common, self.target)
