"""Merge the classes of a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError, nearest
from surgery.layers import descendants, find_output
from surgery.marks import labels, set_labels
from surgery.passes.activations import ACTIVATION_OPS
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import add_constant, forget_shapes, insert_behind, opset

__all__ = ["MergeLabels"]

_NORMALIZED = ("Softmax", "LogSoftmax")
_VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Dropout")


@pass_dataclass
class MergeLabels(Pass):
    """Makes several classes of a classifier one, whose probability is the sum of theirs.

    In front of the Softmax (or at the end, where the output is scores that one may be put behind) each group's scores
    become their log-sum-exp, of which a softmax is exactly that sum; the network can be trained on. A merged class
    stands where the first of its classes stood. Idempotent.

    Attributes:
        groups: The new labels, each with the labels that it stands for; ``*`` in one of them stands for anything.
        rest: The label of all other classes together; without it they stay as they are.
        output: The output's name; not needed where there is only one.
    """

    shorthand: ClassVar[str | None] = "groups"

    groups: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    rest: str | None = None
    output: str | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        end = find_output(model, self.output)
        output = str(end.name)
        names = labels(model, output)
        if names is None:
            raise SurgeryError(f"output {output!r} has no labels that could be merged; replace_head gives it some")
        merged = self._merge(names)
        if merged is None:
            return
        if opset(model) < 9:
            raise SurgeryError(f"merge_labels needs operator set 9, not {opset(model)}; convert the model first")
        scores = _scores(end, default_axis=-1 if opset(model) >= 13 else 1)
        if scores.shape is None or len(scores.shape) < 2 or scores.shape[1] not in (len(names), None):
            raise SurgeryError(f"output {output!r} has {len(names)} labels, but its scores the shape {scores.shape}")
        for other in _others(model, scores, end):
            raise SurgeryError(
                f"output {other!r} is made from the same scores as {output!r}; take it out first (prune_outputs)"
            )
        rank = len(scores.shape)
        forget_shapes([scores])
        _insert(model, scores, rank, list(merged.values()))
        set_labels(model, output, list(merged))
        for name, members in merged.items():
            if [names[m] for m in members] != [name]:
                yield Change(output, f"{name}: {', '.join(names[m] for m in members)}")
        yield Change(output, f"{len(names)} → {len(merged)} classes")

    def _merge(self, names: list[str]) -> dict[str, list[int]] | None:
        """The new labels with the old classes of each; None where they are merged already."""
        owner: dict[int, str] = {}
        missing = []
        for name, patterns in self.groups.items():
            for pattern in patterns:
                like = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
                found = [i for i, old in enumerate(names) if like.fullmatch(old)]
                if not found:
                    missing.append((name, pattern))
                for i in found:
                    if owner.setdefault(i, name) != name:
                        raise SurgeryError(f"label {names[i]!r} is in two groups, {owner[i]!r} and {name!r}")
        merged_already = all(name in names for name in self.groups) and self.rest in (None, *names)
        if missing and merged_already and all(names[i] == name for i, name in owner.items()):
            return None
        if missing:
            name, pattern = missing[0]
            raise SurgeryError(f"group {name!r}: the model has no label {pattern!r}{nearest(pattern, names)}")
        merged: dict[str, list[int]] = {}
        for i, old in enumerate(names):
            name = owner.get(i, old if self.rest is None else self.rest)
            if i not in owner and self.rest is None and name in merged:
                raise SurgeryError(f"label {name!r} would be there twice; give the group another name")
            merged.setdefault(name, []).append(i)
        return None if list(merged) == names else merged


def _scores(end: ir.Value, default_axis: int) -> ir.Value:
    """The scores that a softmax makes the output of, or is to.

    Raises:
        SurgeryError: The output is something else.
    """
    node = end.producer()
    if node is not None and node.op_type in _NORMALIZED:
        scores = node.inputs[0]
        assert scores is not None
        rank = len(scores.shape or ())
        if node.attributes.get_int("axis", default_axis) % max(rank, 1) != 1:
            raise SurgeryError(f"{node.op_type} {node.name!r} is not over the classes of axis 1")
        return scores
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type in ACTIVATION_OPS:
        raise SurgeryError(
            f"{node.op_type} {node.name!r} makes output {end.name!r}; classes can be merged where it is made by a "
            "Softmax, or is scores without one"
        )
    return end


def _others(model: ir.Model, scores: ir.Value, end: ir.Value) -> list[str]:
    """The names of the outputs besides `end` that are the scores, or are computed from them."""
    behind = {scores, *(o for node in descendants([scores]) for o in node.outputs)}
    return [str(o.name) for o in model.graph.outputs if o in behind and o is not end]


def _insert(model: ir.Model, scores: ir.Value, rank: int, groups: list[list[int]]) -> None:
    """Puts the log-sum-exp of groups of scores behind them: each group's scores side by side, those missing at −∞."""
    graph, width, name = model.graph, max(map(len, groups)), f"{scores.name}/merged"
    dtype = (scores.dtype or ir.DataType.FLOAT).numpy()
    indices = np.array([group + group[:1] * (width - len(group)) for group in groups], np.int64)
    node = insert_behind(
        scores, "Gather", name, inputs=[add_constant(graph, indices, f"{name}.classes")], attributes={"axis": 1}
    )
    if any(len(group) < width for group in groups):
        there = np.array([[i < len(group) for i in range(width)] for group in groups])
        there = there.reshape(*there.shape, *[1] * (rank - 2))
        low = np.array(ml_dtypes.finfo(dtype).min, dtype)
        gathered = node.outputs[0]
        node = insert_behind(gathered, "Where", name, inputs=[gathered, add_constant(graph, low, f"{name}.low")])
        node.replace_input_with(0, add_constant(graph, there, f"{name}.there"))
    if opset(model) < 18:
        insert_behind(node.outputs[0], "ReduceLogSumExp", name, attributes={"axes": [2], "keepdims": 0})
    else:
        axes = add_constant(graph, np.array([2]), f"{name}.axis")
        insert_behind(node.outputs[0], "ReduceLogSumExp", name, inputs=[axes], attributes={"keepdims": 0})
