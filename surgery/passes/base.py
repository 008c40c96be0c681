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
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import onnx_ir as ir
import pydantic.dataclasses
from pydantic import ConfigDict
from typing_extensions import dataclass_transform

from surgery.errors import SurgeryError
from surgery.io import infer_shapes

__all__ = ["Change", "Pass", "Result", "given", "pass_dataclass", "registry"]

registry: dict[str, type[Pass]] = {}
P = TypeVar("P", bound="Pass")


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
    """Base class of Surgery's passes; an `onnx_ir` pass, so it also runs in `onnx_ir.passes.Sequential`.

    Attributes:
        pass_name: Its name in recipes.
        shorthand: The field that a recipe's ``name: value`` means, if the pass has one: ``freeze: head``.
        together: The JSON Schema of which fields it needs together, where a validator checks that; see `given`.
    """

    pass_name: ClassVar[str]
    shorthand: ClassVar[str | None] = None
    together: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.pass_name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if cls.__name__.startswith("_"):
            return
        other = registry.setdefault(cls.pass_name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"there is a pass named {cls.pass_name} already, in {other.__module__}")
        registry[cls.pass_name] = cls

    @abstractmethod
    def edit(self, model: ir.Model) -> Iterator[Change]:
        """Edits the graph of `model` and yields what it did; nothing where there was nothing to do.

        Raises:
            SurgeryError: The model lacks what the pass asks for.
        """

    def arguments(self) -> dict[str, Any]:
        """Its fields as plain data, as recipes write them."""
        return pydantic.TypeAdapter(type(self)).dump_python(self, mode="json", by_alias=True)

    if TYPE_CHECKING:  # more is known than of other passes

        def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> Result: ...

    def call(self, model: ir.Model) -> Result:
        """Runs the pass; shapes are inferred again where the graph changed.

        Raises:
            SurgeryError: The model lacks what the pass asks for, or there is not enough memory for it.
        """
        try:
            changes = list(self.edit(model))
        except MemoryError as error:
            raise SurgeryError("there is not enough memory for what this asks for; make it smaller") from error
        if changes:
            infer_shapes(model)
        return Result(model, bool(changes), changes)


def given(field: str) -> dict[str, Any]:
    """The JSON Schema of mappings in which `field` is there and not null."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


@dataclass_transform()
def pass_dataclass(cls: type[P]) -> type[P]:
    """Makes a pass a dataclass that checks its fields, also when Python code sets them.

    Unknown keys and wrong types are errors, but a float may be written as an int.
    """
    config = ConfigDict(
        extra="forbid", strict=True, validate_assignment=True, allow_inf_nan=False, json_schema_extra=cls.together
    )
    return cast("type[P]", pydantic.dataclasses.dataclass(config=config)(cls))
