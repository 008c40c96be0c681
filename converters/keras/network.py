"""A Keras network as plain data: layers, and which of them reads what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

__all__ = ["Call", "Layer", "Network", "Ref", "references"]


@dataclasses.dataclass(frozen=True)
class Ref:
    """Output `tensor` of call `call` of the layer named `layer`."""

    layer: str
    call: int
    tensor: int = 0


@dataclasses.dataclass(frozen=True)
class Call:
    """One use of a layer.

    Attributes:
        args: What it is given: a `Ref`, a number, or a list, tuple or dict of such.
        kwargs: The same by name.
    """

    args: list[Any]
    kwargs: dict[str, Any]


@dataclasses.dataclass(eq=False)
class Layer:
    """One layer.

    Attributes:
        name: Its name; different from all others' in its network.
        type: Its class.
        config: Its arguments, by Keras 2's and 3's names.
        trainable: Whether training changes it.
        calls: Its uses, in order.
        network: The network that it is, if it is one.
        wrapped: The layers that it wraps: TimeDistributed's, Bidirectional's forward one and perhaps a backward one.
        operation: Whether it is a function of Keras (``keras.ops``, ``tf``), not a layer.
        shared: Whether it is used more than once, by itself or with a network that it is in.
    """

    name: str
    type: str
    config: dict[str, Any]
    trainable: bool = True
    calls: list[Call] = dataclasses.field(default_factory=list)
    network: Network | None = None
    wrapped: list[Layer] = dataclasses.field(default_factory=list)
    operation: bool = False
    shared: bool = False


@dataclasses.dataclass(eq=False)
class Network:
    """Layers that are connected.

    Attributes:
        name: Its name.
        layers: Its layers, in Keras's order.
        inputs: The outputs of its InputLayers, in the order of its arguments.
        outputs: What it gives.
    """

    name: str
    layers: list[Layer]
    inputs: list[Ref]
    outputs: list[Ref]


def references(data: Any) -> Iterator[Ref]:
    """All references in arguments, in order."""
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, Ref):
            yield item
        elif isinstance(item, list | tuple):
            stack.extend(reversed(item))
        elif isinstance(item, dict):
            stack.extend(reversed(list(item.values())))
