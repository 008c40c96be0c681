"""What is different between two models, layer by layer, as data and as text; `diff_page` makes a web page of it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.text import Text

from surgery.layers import Layer, layers
from surgery.marks import described, labels, marks, preprocessing

__all__ = ["diff", "text"]

_CHUNK = 2**20  # numbers compared at a time
_SHOWN = 16  # numbers of a constant that are written out
_KINDS = ("added", "removed", "changed", "same")


def diff(old: ir.Model, new: ir.Model) -> dict[str, Any]:
    """Compares two models.

    Layers are the same if they have the same name; of the others, those whose operator, attributes and parameters are
    the same (or of the same shapes), in the same order, so that an inserted or renamed layer moves no other.

    Returns:
        Plain data: ``same``, whether there is no difference; ``model``, what is different of inputs, outputs, labels
        and preprocessing; ``layers`` in the new model's order, with the removed ones where they were, each with its
        ``kind`` (added, removed, changed, same) and what changed; and ``counts``, how many there are of each kind.
    """
    before, after = _View(old), _View(new)
    pairs = _match(before, after)
    items = list(_items(before, after, pairs))
    model = list(_model_changes(old, new))
    counts = {kind: sum(item["kind"] == kind for item in items) for kind in _KINDS}
    return {"same": not model and counts["same"] == len(items), "model": model, "layers": items, "counts": counts}


class _View:
    """The layers of a model, and what they read."""

    def __init__(self, model: ir.Model) -> None:
        self.layers = layers(model)
        self.index = {node: i for i, layer in enumerate(self.layers) for node in layer.nodes}
        self._digests: dict[ir.Value, bytes] = {}

    def sources(self, layer: Layer) -> list[int | str]:
        """What a layer reads, in order: numbers of layers, names of inputs; plumbing between is looked through."""
        found: list[int | str] = []
        for value in layer.node.inputs:
            found += self._origin(value, set())
        return found

    def _origin(self, value: ir.Value | None, seen: set[ir.Node]) -> list[int | str]:
        if value is None or value.is_initializer():
            return []
        node = value.producer()
        if node is None:
            return [str(value.name)]
        if node in self.index:
            return [self.index[node]]
        if node in seen:
            return []
        seen.add(node)
        return [place for v in node.inputs for place in self._origin(v, seen)]

    def digest(self, value: ir.Value) -> bytes:
        """A hash of what an initializer holds."""
        if value not in self._digests:
            tensor = value.const_value
            self._digests[value] = b"" if tensor is None else _contents(tensor)
        return self._digests[value]


def _form(layer: Layer) -> Hashable:
    """What must be the same in layers of different names that are to be the same one."""
    shapes = tuple((role, str(p.shape)) for role, p in layer.parameters.items())
    return layer.op_type, layer.node.domain, tuple(sorted(_attributes(layer).items())), shapes


def _match(before: _View, after: _View) -> dict[int, int]:
    """The new number of each old layer that is there still."""
    pairs: dict[int, int] = {}
    names = {layer.name: i for i, layer in reversed(list(enumerate(after.layers)))}
    for i, layer in enumerate(before.layers):
        if layer.name in names:
            pairs[i] = names.pop(layer.name)
    for form in (
        lambda view, layer: (_form(layer), tuple(view.digest(p) for p in layer.parameters.values())),
        lambda view, layer: _form(layer),
    ):
        _match_rest(before, after, pairs, form)
    return pairs


def _match_rest(before: _View, after: _View, pairs: dict[int, int], form: Callable[[_View, Layer], Hashable]) -> None:
    """Matches layers that are not yet by their form, in order."""
    taken = set(pairs.values())
    old = [i for i in range(len(before.layers)) if i not in pairs]
    new = [i for i in range(len(after.layers)) if i not in taken]
    if not old or not new:
        return
    forms = [form(before, before.layers[i]) for i in old], [form(after, after.layers[i]) for i in new]
    for block in difflib.SequenceMatcher(None, *forms, autojunk=False).get_matching_blocks():
        for i in range(block.size):
            pairs[old[block.a + i]] = new[block.b + i]


def _items(before: _View, after: _View, pairs: dict[int, int]) -> Iterator[dict[str, Any]]:
    """The layers, the removed ones where they were."""
    back = {new: old for old, new in pairs.items()}
    told = 0
    for number, layer in enumerate(after.layers):
        if number in back:
            for gone in range(told, back[number]):
                if gone not in pairs:
                    yield _item("removed", before.layers[gone])
            told = max(told, back[number] + 1)
            changes = list(_changes(before, after, pairs, back[number], number))
            yield _item("changed" if changes else "same", layer, changes)
        else:
            yield _item("added", layer)
    for gone in range(told, len(before.layers)):
        if gone not in pairs:
            yield _item("removed", before.layers[gone])


def _item(kind: str, layer: Layer, changes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": layer.name,
        "operator": layer.op_type,
        "output_shape": _shape(layer.output.shape),
        "parameters": {role: _shape(p.shape) for role, p in layer.parameters.items()},
        "changes": list(changes),
    }


def _shape(shape: ir.Shape | None) -> str:
    return "?" if shape is None else "×".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in shape)


def _change(what: str, old: Any, new: Any, **more: Any) -> dict[str, Any]:
    return {"what": what, "old": old, "new": new, **more}


def _changes(before: _View, after: _View, pairs: dict[int, int], i: int, j: int) -> Iterator[dict[str, Any]]:
    """What is different between a layer and what became of it."""
    old, new = before.layers[i], after.layers[j]
    if old.name != new.name:
        yield _change("name", old.name, new.name)
    if (old.node.domain, old.op_type) != (new.node.domain, new.op_type):
        yield _change("operator", old.op_type, new.op_type)
    yield from _entries(_attributes(old), _attributes(new))
    came, comes = before.sources(old), after.sources(new)
    if [pairs.get(s) if isinstance(s, int) else s for s in came] != comes:
        yield _change("reads", *(_called(v, s) for v, s in ((before, came), (after, comes))))
    shapes = _shape(old.output.shape), _shape(new.output.shape)
    if shapes[0] != shapes[1]:
        yield _change("output shape", *shapes)
    for role in dict.fromkeys([*old.parameters, *new.parameters]):
        yield from _parameter_changes(role, old.parameters.get(role), new.parameters.get(role))


def _called(view: _View, sources: Sequence[int | str]) -> str:
    return ", ".join(view.layers[s].name if isinstance(s, int) else s for s in sources)


def _entries(old: dict[str, str], new: dict[str, str]) -> Iterator[dict[str, Any]]:
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield _change(key, old.get(key), new.get(key))


def _attributes(layer: Layer) -> dict[str, str]:
    """The attributes of a layer, and the constants it reads besides its parameters, as text."""
    parameters = set(layer.parameters.values())
    found: dict[str, str] = {}
    for node in layer.nodes:
        found |= _settings(node, parameters)
    return found


def _settings(node: ir.Node, parameters: set[ir.Value]) -> dict[str, str]:
    found = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if isinstance(value, ir.TensorProtocol):
            found[name] = _constant(value)
        elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            found[name] = f"subgraph {_hash(attribute)}"
        else:
            found[name] = str(list(value) if isinstance(value, tuple) else value)
    for index, value in enumerate(node.inputs):
        if value is not None and value.is_initializer() and value not in parameters and value.const_value is not None:
            found[f"input {index}"] = _constant(value.const_value)
    return found


def _hash(part: Any) -> str:
    return hashlib.blake2b(ir.to_proto(part).SerializeToString(), digest_size=4).hexdigest()


def _constant(tensor: ir.TensorProtocol) -> str:
    if tensor.size <= _SHOWN:
        return str(tensor.numpy().tolist())
    return f"{_shape(ir.Shape(tensor.shape.numpy()))} numbers ({_contents(tensor).hex()[:8]})"


def _contents(tensor: ir.TensorProtocol) -> bytes:
    """A hash of what a tensor holds."""
    array = tensor.numpy()
    data = repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _parameter_changes(role: str, old: ir.Value | None, new: ir.Value | None) -> Iterator[dict[str, Any]]:
    if old is None or new is None:
        yield _change(role, *(None if p is None else _shape(p.shape) for p in (old, new)))
        return
    if _shape(old.shape) != _shape(new.shape):
        yield _change(f"{role} shape", _shape(old.shape), _shape(new.shape))
    if old.dtype != new.dtype:
        yield _change(f"{role} type", *(str(p.dtype).lower() for p in (old, new)))
    if _shape(old.shape) == _shape(new.shape) and old.const_value is not None and new.const_value is not None:
        arrays = old.const_value.numpy(), new.const_value.numpy()
        if not _equal(*arrays):
            weights = compare_arrays(*arrays)
            more = dataclasses.asdict(weights) | {"relative": weights.relative}
            yield _change(role, weights.old_norm, weights.new_norm, **more)
    both = marks(old), marks(new)
    for field in dataclasses.fields(both[0]):
        values = [getattr(m, field.name) for m in both]
        if values[0] != values[1]:
            plain = (v if isinstance(v, bool | int | float | None) else str(v) for v in values)
            yield _change(f"{role} {field.name.replace('_', ' ')}", *plain)


@dataclasses.dataclass
class Comparison:
    """How far two arrays of one shape are apart.

    Attributes:
        changed: How many numbers are different.
        size: How many numbers there are.
        old_norm: The L2 norm of the old.
        new_norm: The L2 norm of the new.
        distance: The L2 norm of the difference; infinite where a number became none.
        largest: The largest difference of one number; likewise.
    """

    changed: int
    size: int
    old_norm: float
    new_norm: float
    distance: float
    largest: float

    @property
    def relative(self) -> float:
        """The distance as a part of the old norm."""
        return self.distance / self.old_norm if self.old_norm else math.inf if self.distance else 0.0


def _equal(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two arrays of one shape hold the same numbers; NaN is the same as NaN."""
    a, b = old.reshape(-1), new.reshape(-1)
    pieces = ((a[i : i + _CHUNK], b[i : i + _CHUNK]) for i in range(0, a.size, _CHUNK))
    return all(((x == y) | ((x != x) & (y != y))).all() for x, y in pieces)


def compare_arrays(old: np.ndarray, new: np.ndarray) -> Comparison:
    """Compares two arrays of one shape, piece by piece."""
    changed, sums, largest = 0, np.zeros(3), 0.0
    a, b = old.reshape(-1), new.reshape(-1)
    for start in range(0, a.size, _CHUNK):
        x, y = a[start : start + _CHUNK].astype(np.float64), b[start : start + _CHUNK].astype(np.float64)
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            gap = np.where(equal, 0.0, y - x)
        gap[np.isnan(gap)] = math.inf  # a number, and none
        changed += int((~equal).sum())
        sums += x @ x, y @ y, gap @ gap
        largest = max(largest, float(np.abs(gap).max()))
    was, becomes, distance = (float(s) for s in np.sqrt(sums))
    return Comparison(changed, a.size, was, becomes, distance, largest)


def _model_changes(old: ir.Model, new: ir.Model) -> Iterator[dict[str, Any]]:
    """What is different of the models as a whole."""
    both = (old, new)
    yield from _entries(*(_ends("input", m.graph.inputs) for m in both))
    yield from _entries(*(_ends("output", m.graph.outputs) for m in both))
    yield from _entries(*({f"operator set {d or 'ai.onnx'}": str(v) for d, v in m.opset_imports.items()} for m in both))
    for name in sorted(described(old, "labels") | described(new, "labels")):
        was, becomes = labels(old, name), labels(new, name)
        if was != becomes:
            yield _change(f"labels of {name}", _list(was), _list(becomes))
    for name in sorted(described(old, "preprocessing") | described(new, "preprocessing")):
        hows = [preprocessing(m, name) for m in both]
        fields = [dataclasses.asdict(how) if how is not None else {} for how in hows]
        yield from _entries(
            *({f"preprocessing of {name}: {k}": str(v) for k, v in f.items() if v is not None} for f in fields)
        )
    yield from _entries(*({f"function {'.'.join(f)}": _hash(b) for f, b in m.functions.items()} for m in both))
    yield from _entries(*({"operators that compute shapes and constants": _plumbing(m)} for m in both))


def _ends(what: str, values: Sequence[ir.Value]) -> dict[str, str]:
    return {f"{what} {v.name}": f"{v.dtype} {_shape(v.shape)}" for v in values}


def _plumbing(model: ir.Model) -> str:
    """The operators that are in no layer, in short."""
    owned = {node for layer in layers(model) for node in layer.nodes}
    forms = [(node.op_type, *sorted(_settings(node, set()).items())) for node in model.graph if node not in owned]
    return f"{len(forms)} ({hashlib.blake2b(repr(forms).encode(), digest_size=4).hexdigest()})"


def _list(names: list[str] | None) -> str | None:
    if names is None:
        return None
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)})" if len(names) > _SHOWN else "")


def in_words(change: dict[str, Any]) -> str:
    """A change in one line."""
    what, old, new = change["what"], change["old"], change["new"]
    if "distance" in change:
        some = f"{change['changed']:,} of {change['size']:,} numbers"
        share = some if change["changed"] < change["size"] else "all numbers"
        return (
            f"{what}: norm {old:.4g} → {new:.4g}, changed by {change['distance']:.4g} ({change['relative']:.2%}), "
            f"{share}, at most {change['largest']:.3g}"
        )
    if old is None:
        return f"{what} added: {new}"
    return f"{what} removed: {old}" if new is None else f"{what}: {old} → {new}"


def in_short(counts: dict[str, int]) -> str:
    """How many layers there are of each kind."""
    return ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS)


_STYLES = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def text(found: dict[str, Any]) -> Text:
    """What `diff` found, as coloured text; layers that are the same are only counted."""
    lines = Text()
    for change in found["model"]:
        lines.append(f"~ {in_words(change)}\n", "yellow")
    same = 0
    for item in found["layers"]:
        if item["kind"] == "same":
            same += 1
            continue
        if same:
            lines.append(f"  … {same} the same\n", "dim")
        same = 0
        sign, style = _STYLES[item["kind"]]
        parameters = ", ".join(f"{role} {shape}" for role, shape in item["parameters"].items())
        detail = f" {item['output_shape']}" + (f", {parameters}" if parameters else "")
        lines.append(f"{sign} {item['name']} ", f"bold {style}").append(f"{item['operator']}{detail}\n", style)
        for change in item["changes"]:
            lines.append(f"    {in_words(change)}\n")
    if same:
        lines.append(f"  … {same} the same\n", "dim")
    lines.append("the models are the same" if found["same"] else f"layers: {in_short(found['counts'])}")
    return lines
