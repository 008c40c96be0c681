"""Sequences of tensors resolved: an element that is known to be a tensor of the graph becomes that tensor."""

from __future__ import annotations

import onnx_ir as ir

from surgery.autodiff.unroll import Splicer

__all__ = ["SEQUENCE_OPERATORS", "resolve_sequence"]

SEQUENCE_OPERATORS = {"SequenceAt", "ConcatFromSequence"}  # what makes a tensor of a sequence


def resolve_sequence(splicer: Splicer, node: ir.Node) -> bool:
    """Replaces an operator that makes a tensor of a sequence; returns whether the sequence's elements are known."""
    source = node.inputs[0]
    elements = None if source is None else _elements(splicer, source)
    if not elements:
        return False
    if node.op_type == "ConcatFromSequence":
        axis = node.attributes["axis"].as_int()
        if _int(node, "new_axis", 0):
            at = splicer.ints([axis])
            elements = [splicer.emit(node, "Unsqueeze", [v, at])[0] for v in elements]
        splicer.replace(node, splicer.emit(node, "Concat", elements, axis=axis))
        return True
    position = _position(splicer, node.inputs[1])
    if position is None:
        return False
    splicer.replace(node, [elements[position]])
    return True


def _elements(splicer: Splicer, sequence: ir.Value) -> list[ir.Value] | None:
    """The tensors of a sequence, as far as they are known beforehand."""
    node = sequence.producer()
    if node is None:
        return None
    if node.op_type == "SequenceConstruct":
        return [v for v in node.inputs if v is not None]
    if node.op_type == "SequenceEmpty":
        return []
    if node.op_type == "SplitToSequence":
        return _split(splicer, node)
    source = node.inputs[0] if node.inputs else None
    elements = None if source is None else _elements(splicer, source)
    if elements is None or node.op_type == "Identity":
        return elements
    if node.op_type not in ("SequenceInsert", "SequenceErase"):
        return None
    inserts = node.op_type == "SequenceInsert"
    index = node.inputs[2 if inserts else 1] if len(node.inputs) > (2 if inserts else 1) else None
    position = (len(elements) if inserts else -1) if index is None else _position(splicer, index)
    if position is None:
        return None
    elements = list(elements)
    if inserts and node.inputs[1] is not None:
        elements.insert(position, node.inputs[1])
    elif not inserts:
        del elements[position]
    return elements


def _split(splicer: Splicer, node: ir.Node) -> list[ir.Value] | None:
    """The parts of a SplitToSequence, by a Split in its place."""
    if node in splicer.splits:
        return splicer.splits[node]
    source, axis = node.inputs[0], _int(node, "axis", 0)
    assert source is not None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    split = splicer.known(given)
    if split is not None and split.ndim == 1:
        sizes = split.tolist()
    else:
        size = None if source.shape is None else source.shape[axis]
        step = 1 if given is None else None if split is None else int(split)
        if not isinstance(size, int) or step is None:
            return None
        sizes = [min(step, size - start) for start in range(0, size, step)]
    parts = [source]
    if len(sizes) > 1:
        parts = splicer.emit(node, "Split", [source, splicer.ints(sizes)], len(sizes), axis=axis)
    if given is None and not _int(node, "keepdims", 1):
        parts = [splicer.emit(node, "Squeeze", [part, splicer.ints([axis])])[0] for part in parts]
    splicer.splits[node] = parts
    return parts


def _position(splicer: Splicer, index: ir.Value | None) -> int | None:
    array = splicer.known(index)
    return None if array is None else int(array.item())


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
