"""What a model is made of, as data and as a table."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from rich.table import Table

from surgery.layers import STATISTICS, Layer, layers
from surgery.marks import labels, marks, preprocessing

__all__ = ["in_words", "summary", "table"]


def _shape(value: ir.Value) -> list[int | str] | None:
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else str(d.value or "?") for d in value.shape]


def _size(parameter: ir.Value) -> int:
    return math.prod(parameter.shape.numpy()) if parameter.shape is not None else 0


def _trained(layer: Layer) -> list[ir.Value]:
    """The parameters of `layer` that training changes by gradients."""
    return [p for role, p in layer.parameters.items() if role not in STATISTICS and not marks(p).frozen]


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "index": layer.index,
        "name": layer.name,
        "operator": layer.op_type,
        "output_shape": _shape(layer.output),
        "size": layer.size,
        "trainable": layer.trainable if layer.parameters else None,
        "parameters": {
            role: {
                "name": p.name,
                "shape": _shape(p),
                "trainable": p in _trained(layer) if role not in STATISTICS else marks(p).trainable,
                "learning_rate": marks(p).learning_rate,
                "decay": marks(p).decay,
                "l1": marks(p).l1,
                "l2": marks(p).l2,
                "constraint": str(marks(p).constraint) if marks(p).constraint else None,
            }
            for role, p in layer.parameters.items()
        },
    }


def summary(model: ir.Model) -> dict[str, Any]:
    """Returns the model's inputs, outputs and layers with their marks, and totals, as plain data."""
    view = layers(model)
    owned = {p: p in _trained(layer) for layer in view for p in layer.parameters.values()}  # shared ones count once
    return {
        "opset": model.opset_imports.get("", 0),
        "inputs": [{"name": i.name, "shape": _shape(i), "preprocessed": _how(model, i)} for i in model.graph.inputs],
        "outputs": [
            {"name": o.name, "shape": _shape(o), "labels": labels(model, str(o.name))} for o in model.graph.outputs
        ],
        "layers": [_layer(layer) for layer in view],
        "parameters": sum(map(_size, owned)),
        "trainable": sum(_size(p) for p, trained in owned.items() if trained),
    }


def _how(model: ir.Model, value: ir.Value) -> bool:
    return preprocessing(model, str(value.name)) is not None


def _dims(shape: list[int | str] | None) -> str:
    return "?" if shape is None else "×".join(map(str, shape))


def in_words(model: ir.Model) -> str:
    """Returns the totals of `model` in one line."""
    data = summary(model)
    numbered = sum(layer["index"] is not None for layer in data["layers"])
    return f"{numbered} layers with {data['parameters']:,} parameters, {data['trainable']:,} of them trainable"


def _regularization(layer: dict[str, Any]) -> str:
    """What the marks of a layer's trained parameters say of it, where that is not the usual."""
    usual = {"decay": 1, "l1": 0, "l2": 0}
    found = [
        f"{role} {key} {'× ' if key == 'decay' else ''}{parameter[key]:g}"
        for role, parameter in layer["parameters"].items()
        for key, value in usual.items()
        if role not in STATISTICS and parameter["trainable"] and parameter[key] != value
    ]
    return ", ".join(found)


def table(model: ir.Model, title: str = "") -> Table:
    """Returns the layers of `model` as a table, with its totals."""
    data = summary(model)
    ends = (
        ", ".join(f"{v['name']} {_dims(v['shape'])}" for v in data["inputs"])
        + " → "
        + ", ".join(
            f"{v['name']} {_dims(v['shape'])}" + (f" ({len(v['labels'])} labels)" if v["labels"] else "")
            for v in data["outputs"]
        )
    )
    result = Table(
        title=f"{title}: {ends}" if title else ends, title_justify="left", title_style="", caption_justify="left"
    )
    for name, right in (
        ("#", True),
        ("layer", False),
        ("operator", False),
        ("output", False),
        ("parameters", True),
        ("trainable", False),
        ("lr", True),
        ("constraint", False),
    ):
        result.add_column(name, justify="right" if right else "left", overflow="fold")
    regularized = any(map(_regularization, data["layers"]))
    if regularized:
        result.add_column("regularization", overflow="fold")
    for layer in data["layers"]:
        parameters = layer["parameters"].values()
        rates = [f"{p['learning_rate']:g}" for p in parameters if p["trainable"]]
        result.add_row(
            str(layer["index"] or ""),
            layer["name"],
            layer["operator"],
            _dims(layer["output_shape"]),
            f"{layer['size']:,}" if parameters else "",
            {True: "yes", False: "no", None: ""}[layer["trainable"]],
            rates[0] if len(set(rates)) == 1 else " / ".join(rates),
            ", ".join(dict.fromkeys(p["constraint"] for p in parameters if p["constraint"])),
            *([_regularization(layer)] if regularized else []),
        )
    result.caption = in_words(model)
    return result
