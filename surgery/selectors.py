"""Selectors: one grammar for "which layers", used by every pass.

conv1               a layer by its name, an output's or a parameter's (``fc`` for fc.weight and fc.bias)
conv*               a glob, of the same names
head                the layer in front of the output (of every output)
all                 every layer
{first: 5}          the first five layers with parameters, by the number that `surgery inspect` shows
{last: 2}           the last two
{until: pool3}      a layer and everything it is computed from
{from: a, to: b}    everything from layer a to layer b; either alone goes to the end or the beginning
{type: Conv}        by operator
[a, {last: 1}]      any of these
"""

from __future__ import annotations

import fnmatch
import functools
from typing import Annotated, Any

import onnx_ir as ir
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from surgery.errors import SurgeryError, nearest
from surgery.layers import NAMES, Layer, ancestors, descendants, find_layer, head, known_names, layers

__all__ = ["SELECTOR_KEYS", "Selector", "select"]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class First(_Form):
    """The first layers with parameters."""

    first: PositiveInt


class Last(_Form):
    """The last layers with parameters."""

    last: PositiveInt


class Until(_Form):
    """A layer and everything it is computed from."""

    until: str


class Between(_Form):
    """Everything between two layers, both included."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"minProperties": 1})
    from_: str | None = Field(None, alias="from")
    to: str | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Between:
        if self.from_ is None and self.to is None:
            raise ValueError("needs `from`, `to` or both")
        return self


class OfType(_Form):
    """The layers of one operator type."""

    type: str


_One = Annotated[str, Field(min_length=1)] | First | Last | Until | OfType | Between
SELECTOR_KEYS = frozenset({"first", "last", "until", "from", "to", "type"})


def _in_one_message(value: Any, check: Any) -> Any:
    """What is no selector is told once, not once for every form that it is not."""
    try:
        return check(value)
    except ValidationError as error:
        parts = value if isinstance(value, list) else [value]
        keys = [k for part in parts if isinstance(part, dict) for k in part if k not in SELECTOR_KEYS]
        hint = nearest(keys[0], SELECTOR_KEYS) if keys else ""
        raise PydanticCustomError("selector", "{message}", {"message": _NOT_ONE.format(value, hint)}) from error


_NOT_ONE = (
    "{!r} is not a selector{}; write a layer's name or glob, {{first: 5}}, {{last: 2}}, {{until: NAME}}, "
    "{{from: A, to: B}}, {{type: Conv}}, head, all, or a list of these"
)
Selector = Annotated[_One | Annotated[list[_One], Field(min_length=1)], WrapValidator(_in_one_message)]
_adapter: TypeAdapter[Any] = TypeAdapter(Selector)


def select(model: ir.Model, selector: Any) -> list[Layer]:
    """Returns the layers of `model` that `selector` matches, in graph order.

    Args:
        model: The model.
        selector: A selector, or the plain Python value of one: ``"conv*"``, ``{"first": 5}``, ``["a", "b"]``.

    Raises:
        SurgeryError: The selector is malformed, or a part of it matches nothing; the message names the nearest layers.
    """
    try:
        parsed = _adapter.validate_python(selector)
    except ValidationError as error:
        raise SurgeryError(error.errors()[0]["msg"]) from error
    view = layers(model)
    parts = parsed if isinstance(parsed, list) else [parsed]
    chosen: set[ir.Node] = set()
    for part in parts:
        found = _match(model, view, part)
        if not found:
            kind = part if isinstance(part, str) else part.model_dump(by_alias=True, exclude_none=True)
            raise SurgeryError(f"selector {kind!r} matches no layer{_hint(view, part)}")
        chosen |= found
    return [layer for layer in view if layer.node in chosen]


def _hint(view: list[Layer], part: Any) -> str:
    if isinstance(part, OfType):
        return nearest(part.type, {layer.op_type for layer in view})
    if isinstance(part, str):
        return nearest(part, [*known_names(view), "head", "all"])
    return ""


def _match(model: ir.Model, view: list[Layer], part: Any) -> set[ir.Node]:
    if isinstance(part, str):
        return _by_name(model, view, part)
    owners = [layer for layer in view if layer.index is not None]
    if isinstance(part, First | Last):
        count = part.first if isinstance(part, First) else part.last
        if count > len(owners):
            raise SurgeryError(f"selector asks for {count} layers; the model has {len(owners)} with parameters")
        return {layer.node for layer in (owners[:count] if isinstance(part, First) else owners[-count:])}
    if isinstance(part, OfType):
        return {layer.node for layer in view if layer.op_type.lower() == part.type.lower()}
    start, end = (None, part.until) if isinstance(part, Until) else (part.from_, part.to)
    inside = {layer.node for layer in view}
    if end is not None:
        inside &= ancestors([find_layer(model, end).output])
    if start is not None:
        first = find_layer(model, start)
        inside &= descendants([first.node.outputs[0]]) | {first.node}
    return inside


def _by_name(model: ir.Model, view: list[Layer], name: str) -> set[ir.Node]:
    """The layers named so; where an exporter gave operators names of its own, those whose parameters are."""
    exact = {layer.node for layer in view if layer.name == name}
    if exact:
        return exact
    if name == "all":
        return {layer.node for layer in view}
    if name == "head":
        return {head(model, output.name).node for output in model.graph.outputs}
    matches = functools.partial(fnmatch.fnmatchcase, pat=name) if any(c in name for c in "*?[") else name.__eq__
    for names_of in NAMES:
        found = {layer.node for layer in view if any(matches(n) for n in names_of(layer))}
        if found:
            return found
    return set()
