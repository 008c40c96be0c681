"""Recipes: a YAML file of passes, in order, and of how to train.

    passes:
      - replace_head: {units: 2, labels: [ant, bee]}
      - freeze: {until: pool3}
    train:
      epochs: 20

An item of `passes` is the name of a pass with its fields; `freeze: head` is short for ``freeze: {layers: head}`` where
a pass has a field that is meant by itself, and the name alone is enough for a pass that needs none.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import onnx_ir as ir
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
)

from surgery.errors import SurgeryError, nearest
from surgery.passes import Change, Pass, registry
from surgery.selectors import SELECTOR_KEYS
from surgery.validation import explain
from surgery.yaml_file import Document, Key, parse_yaml, read_yaml

if TYPE_CHECKING:
    from surgery.training.settings import TrainSettings
else:
    TrainSettings = Any

__all__ = ["Recipe", "apply", "apply_recipe", "json_schema", "load_recipe"]


def _train_settings() -> type[TrainSettings]:
    from surgery.training.settings import TrainSettings  # late: training is not needed to operate

    return TrainSettings


def _to_passes(value: Any) -> Any:
    return [_make_pass(item, ("passes", i), _Context()) for i, item in enumerate(value)] if _is_list(value) else value


def _to_train(value: Any) -> Any:
    settings = _train_settings()
    return (
        value
        if isinstance(value, settings)
        else _validate(settings, {} if value is None else value, ("train",), _Context())
    )


@functools.cache
def _schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a pass or of the training settings."""
    return TypeAdapter(kind).json_schema()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


class Recipe(BaseModel):
    """What to do with a model.

    Attributes:
        passes: The passes, in order; plain data, as a recipe's file has it, becomes passes.
        train: How to train.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    passes: Annotated[list[InstanceOf[Pass]], BeforeValidator(_to_passes)] = Field(default_factory=list)
    train: Annotated[TrainSettings, BeforeValidator(_to_train)] = Field(default_factory=lambda: _train_settings()())
    _places: list[str] = PrivateAttr(default_factory=list)


@dataclasses.dataclass
class _Context:
    """Where a recipe's data came from, for messages."""

    document: Document | None = None
    overrides: dict[Key, str] = dataclasses.field(default_factory=dict)  # --set, by the key it sets

    def error(self, key: Key, message: str) -> SurgeryError:
        """An error about `key`, such as ``('passes', 0, 'freeze', 'layers')``."""
        parts = key[2:] if key[:1] == ("passes",) and len(key) > 2 else key
        name = ".".join(map(str, parts))
        return SurgeryError(": ".join(filter(None, [self.place(key), name, message])))

    def place(self, key: Key) -> str:
        for end in range(len(key), 0, -1):
            if key[:end] in self.overrides:
                return f"--set {self.overrides[key[:end]]}"
        return "" if self.document is None else self.document.where(key)


def load_recipe(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file.
        overrides: ``key=value`` that differ from the file: ``train.epochs=5``, ``replace_head.units=14`` or, where a
            pass is there more than once, ``passes.0.units=14``, counted from 0. Values are YAML.

    Raises:
        SurgeryError: The file is not a recipe; the message gives file, line, key and the nearest valid name.
    """
    return _build(read_yaml(path), overrides)


def _build(document: Document, overrides: Iterable[str]) -> Recipe:
    context = _Context(document)
    data = document.data
    if not isinstance(data, dict):
        found = "is empty" if data is None else "is a list" if isinstance(data, list) else "is a single value"
        raise context.error((), f"{found}; a recipe has `passes:` and `train:`")
    for name in data:
        if name not in Recipe.model_fields:
            raise context.error(
                (name,), f"unknown key{nearest(name, Recipe.model_fields)}; a recipe has passes and train"
            )
    items = data.get("passes")
    if items is not None and not isinstance(items, list):
        raise context.error(("passes",), "must be a list: write each pass on a line of its own, after a dash")
    plain = [_plain(item, ("passes", i), context) for i, item in enumerate(items or [])]
    train = data.get("train")
    if not isinstance(train, Mapping | None):
        raise context.error(("train",), "must be a mapping: write each setting as `key: value`")
    train = dict(train or {})
    for override in overrides:
        _override(override, plain, train, context)
    steps = [_validate(registry[name], fields, ("passes", i, name), context) for i, (name, fields) in enumerate(plain)]
    recipe = Recipe(passes=steps, train=_validate(_train_settings(), train, ("train",), context))
    recipe._places = [context.place(("passes", i)) for i in range(len(steps))]
    return recipe


def _make_pass(item: Any, key: Key, context: _Context) -> Pass:
    if isinstance(item, Pass):
        return item
    name, fields = _plain(item, key, context)
    return _validate(registry[name], fields, (*key, name), context)


def _plain(item: Any, key: Key, context: _Context) -> tuple[str, dict[str, Any]]:
    """A pass's name and fields, its short form written out."""
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise context.error(key, "an item is one pass, such as `- freeze: {layers: head}`; write each after a dash")
    ((name, fields),) = item.items()
    if name not in registry:
        raise context.error((*key, name), f"unknown pass{nearest(name, registry)}")
    kind = registry[name]
    names = _schema(kind).get("properties", {})
    short = kind.shorthand
    if fields is None:
        return name, {}
    if short and _is_short_form(fields, names, short):
        return name, {short: fields}
    if not isinstance(fields, Mapping):
        raise context.error((*key, name), f"must be a mapping with some of {', '.join(names)}")
    return name, dict(fields)


def _is_short_form(fields: Any, names: Mapping[str, Any], short: str) -> bool:
    """Whether `fields` is the value of the field `short`: no mapping, or a selector, or what a mapping field holds."""
    if not isinstance(fields, Mapping):
        return True
    if not fields or set(fields) & set(names):
        return False
    if short == "layers" and all(_nearest_is_selectors(key, names) for key in fields):
        return True  # a misspelt key of a selector, which is to be told as such
    return set(fields) <= SELECTOR_KEYS or names[short].get("type") == "object"


def _nearest_is_selectors(key: str, names: Iterable[str]) -> bool:
    close = difflib.get_close_matches(str(key), [*names, *SELECTOR_KEYS], n=1)
    return bool(close) and close[0] in SELECTOR_KEYS


def _override(text: str, plain: list[tuple[str, dict[str, Any]]], train: dict[str, Any], context: _Context) -> None:
    """Sets one key of a recipe's plain data."""
    path, equals, value_text = text.partition("=")
    here = f"--set {text}"
    if not equals or not path.strip():
        raise SurgeryError(f"{here}: write KEY=VALUE, such as train.epochs=5")
    value = parse_yaml(value_text, here).data
    first, *rest = path.strip().split(".")
    present = [name for name, _ in plain]
    key: Key
    kind: Any
    if first == "train":
        target, key, kind = train, ("train",), _train_settings()
    else:
        if first == "passes" and rest and rest[0].isdecimal():
            index = int(rest.pop(0))
            if index >= len(plain):
                raise SurgeryError(f"{here}: the recipe has {len(plain)} passes, counted from 0")
            rest = rest[1:] if rest[:1] == [present[index]] else rest
        elif present.count(first) == 1:
            index = present.index(first)
        elif first in present:
            numbers = " or ".join(f"passes.{i}" for i, name in enumerate(present) if name == first)
            raise SurgeryError(f"{here}: {first} is there more than once; say {numbers}")
        else:
            raise SurgeryError(f"{here}: the recipe has no {first!r}{nearest(first, {*present, 'train', 'passes'})}")
        name, target = plain[index]
        key, kind = ("passes", index, name), registry[name]
    if not rest:
        raise SurgeryError(f"{here}: say which key of {first}, such as {path}.KEY=VALUE")
    known = list(_schema(kind).get("properties", {}))
    if rest[0] not in known:
        raise SurgeryError(f"{here}: {first} has no key {rest[0]!r}{nearest(rest[0], known)}")
    changed: Key = (*key, *rest)
    context.overrides[changed] = text
    for inner in rest[:-1]:
        inside = target.get(inner, _named_default(kind, inner))
        if isinstance(inside, str) and first == "train":
            inside = {"name": inside}  # optimizer: adam
        if not isinstance(inside, dict):
            raise SurgeryError(f"{here}: {inner} has no keys in it ({inside!r})")
        target[inner] = target = dict(inside)
    target[rest[-1]] = value


def _named_default(kind: Any, field: str) -> Any:
    """The default of a field whose value has a name, such as the optimizer's."""
    info = getattr(kind, "model_fields", {}).get(field)
    default = info.get_default(call_default_factory=True) if info is not None else None
    return getattr(default, "name", {})


def _validate(kind: Any, fields: Any, key: Key, context: _Context) -> Any:
    """Makes a pass or the training settings of plain data."""
    if not isinstance(fields, Mapping):
        raise context.error(key, "must be a mapping: write each setting as `key: value`")
    try:
        return kind(**fields)
    except ValidationError as error:
        inside, message = explain(error, fields, _schema(kind))
        raise context.error((*key, *inside), message) from error


def apply_recipe(recipe: Recipe, model: ir.Model) -> list[tuple[str, list[Change]]]:
    """Applies the passes of `recipe` to `model`, in place.

    Returns:
        The name of each pass and what it changed.

    Raises:
        SurgeryError: The model lacks what a pass asks for; the passes before it have been applied.
    """
    report = []
    for index, step in enumerate(recipe.passes):
        try:
            report.append((step.pass_name, step(model).changes))
        except SurgeryError as error:
            place = recipe._places[index] if index < len(recipe._places) else f"pass {index}"
            raise SurgeryError(f"{place}: {step.pass_name}: {error}") from error
    return report


def apply(
    model: ir.Model, recipe: Recipe | str | os.PathLike[str] | Pass | Iterable[Any] | Mapping[str, Any]
) -> list[Change]:
    """Applies passes to `model`, in place.

    Args:
        model: The model.
        recipe: A recipe or its file; a pass; passes, each as an object or as a recipe has it
            (``{"freeze": {"layers": "head"}}``).

    Returns:
        What was changed.

    Raises:
        SurgeryError: The recipe is wrong, or the model lacks what a pass asks for.
    """
    if isinstance(recipe, str | os.PathLike):
        recipe = load_recipe(recipe)
    elif isinstance(recipe, Pass):
        recipe = Recipe(passes=[recipe])
    elif isinstance(recipe, Mapping):
        recipe = _build(Document("recipe", dict(recipe)), ())
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.model_validate({"passes": list(recipe)})
    return [change for _, changes in apply_recipe(recipe, model) for change in changes]


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of recipes, by which editors complete and check them."""
    names = sorted(registry)
    kinds: dict[str, Any] = {**{name: registry[name] for name in names}, "train": _train_settings()}
    schemas, root = TypeAdapter.json_schemas([(name, "validation", TypeAdapter(k)) for name, k in kinds.items()])
    definitions = root.get("$defs", {})
    items = [_item_schema(name, schemas[name, "validation"], definitions) for name in names]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe",
        "description": "What to do with a model.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "passes": {"description": "The passes, in order.", "type": "array", "items": {"anyOf": items}},
            "train": {"description": "How to train.", "anyOf": [schemas["train", "validation"]]},
        },
        "$defs": {name: _described(definition) for name, definition in sorted(definitions.items())},
    }


def _item_schema(name: str, schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one item of `passes`: the pass's name with its fields, or its short form."""
    kind = registry[name]
    full = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    forms = [schema]
    if kind.shorthand:
        short = dict(full["properties"][kind.shorthand])
        if "anyOf" in short:  # null is no short form
            short["anyOf"] = [form for form in short["anyOf"] if form != {"type": "null"}]
        forms.append(short)
    bare = _works_bare(kind)
    if bare:
        forms.append({"type": "null"})
    item = {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n\n")[0],
        "properties": {name: {"anyOf": forms}},
        "required": [name],
        "additionalProperties": False,
    }
    return {"anyOf": [{"const": name}, item]} if bare else item


def _works_bare(kind: type[Pass]) -> bool:
    """Whether a pass needs no fields."""
    try:
        kind()
    except ValidationError:
        return False
    return True


def _described(definition: dict[str, Any]) -> dict[str, Any]:
    """Moves what the docstring says of each attribute to the attribute."""
    text, _, attributes = str(definition.get("description", "")).partition("Attributes:")
    for match in re.finditer(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
        if (field := definition.get("properties", {}).get(match[1])) is not None:
            field["description"] = " ".join(match[2].split())
    return definition | {"description": text.strip()} if text.strip() else definition
