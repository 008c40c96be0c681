"""What a pass is: a dataclass whose fields are its YAML keys and whose `edit` changes the graph.

To add one, put a file in this folder:

    @pass_dataclass
    class Freeze(Pass):
        "Keeps the parameters of some layers as they are."

        layers: Selector

        def edit(self, model: ir.Model) -> Iterator[Change]:
            for layer in select(model, self.layers):
                ...
                yield Change(layer.name, "frozen")

Its name in recipes is the class name in snake case. Nothing else has to be edited.
"""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import onnx_ir as ir
import pydantic.dataclasses
from pydantic import ConfigDict

from surgery.io import infer_shapes

__all__ = ["Change", "Pass", "Result", "pass_dataclass", "registry"]

registry: dict[str, type[Pass]] = {}


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that a pass did: where (a layer's, value's or the model's name) and what, for the report."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclasses.dataclass
class Result(ir.passes.PassResult):
    """An `onnx_ir` pass result with the list of what changed; empty where nothing had to."""

    changes: list[Change] = dataclasses.field(default_factory=list)


class Pass(ir.passes.InPlacePass):
    """Base class of Surgery's passes; an `onnx_ir` pass, so it also runs in `onnx_ir.passes.Sequential`."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if not cls.__name__.startswith("_"):
            registry[cls.name] = cls

    @abstractmethod
    def edit(self, model: ir.Model) -> Iterator[Change]:
        """Edits the graph of `model` and yields what it did; nothing where there was nothing to do.

        Raises:
            SurgeryError: The model lacks what the pass asks for.
        """

    def call(self, model: ir.Model) -> Result:
        """Runs the pass; shapes are inferred again where the graph changed."""
        changes = list(self.edit(model))
        if changes:
            infer_shapes(model)
        return Result(model, bool(changes), changes)


# Unknown keys are errors; a float field takes an int; fields are checked when Python code sets them, too.
pass_dataclass = pydantic.dataclasses.dataclass(config=ConfigDict(extra="forbid", validate_assignment=True))
