"""Which array of a weights' file is which variable of which layer.

Keras 3's own form has a group for each layer, named by its class and counted, with its variables numbered; the older
form has a group for each layer of the outermost model, with all variables in it in a list: those that are trainable
first. A layer of no known class has variables named 0, 1, ….
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from converters.keras.context import is_known, variables
from converters.keras.hdf5 import Array, Hdf5
from converters.keras.legacy import stored_count, upgrade_arrays
from converters.keras.network import Layer, Network
from surgery.errors import SurgeryError

__all__ = ["Weights", "assign"]

Weights = dict[Layer, dict[str, Array]]
"""For each layer that has any, its variables by name."""

_LAYERS = ("layers", "_layer_checkpoint_dependencies")  # now, and in Keras 2.12
_WRAPPED = {"TimeDistributed": ("layer",), "Bidirectional": ("forward_layer", "backward_layer")}
_STATE = ("moving_mean", "moving_variance", "mean", "variance", "count")  # what training does not train


def assign(network: Network, file: Hdf5, version: int, backend: str | None) -> Weights:
    """Returns the weights that `file` has for the layers of `network`.

    Args:
        network: The network.
        file: The open file: a whole model, or weights.
        version: Keras's major version.
        backend: What the network was trained on, where the file does not say.

    Raises:
        SurgeryError: The file has no Keras weights, or others than the network takes.
    """
    result: Weights = {}
    group = file.group(file.root, "model_weights") or file.root
    if file.texts(group, "layer_names") is not None:
        backend = backend or file.text(group, "backend") or file.text(file.root, "backend")
        _Flat(file, group, version, backend, result).fill(network)
    elif any(file.group(group, name) is not None for name in _LAYERS):
        _fill_tree(network, file, group, result)
    else:
        raise SurgeryError(f"{file.path}: has no Keras weights; is it something else's HDF5 file?")
    return result


def _fill_tree(network: Network, file: Hdf5, group: Any, result: Weights) -> None:
    container = next((g for name in _LAYERS if (g := file.group(group, name)) is not None), None)
    if container is None:
        return
    named: dict[str | None, list[str]] = {}
    for key in file.keys(container):
        own = file.group(container, f"{key}/vars")
        named.setdefault(None if own is None else file.text(own, "name"), []).append(key)
    counts: Counter[str] = Counter()
    for layer in network.layers:
        if layer.operation:
            continue
        stem = _snake_case(layer.type)
        key = stem if not counts[stem] else f"{stem}_{counts[stem]}"
        counts[stem] += 1
        keys = named.get(layer.name, [])
        own = file.group(container, keys[0] if len(keys) == 1 else key)
        if own is not None:
            _fill_layer(layer, file, own, result)


def _fill_layer(layer: Layer, file: Hdf5, group: Any, result: Weights) -> None:
    if layer.network is not None:
        _fill_tree(layer.network, file, group, result)
        return
    for name, inner in zip(_WRAPPED.get(layer.type, ()), layer.wrapped, strict=False):
        own = file.group(group, name)
        if own is not None:
            _fill_layer(inner, file, own, result)
    if not is_known(layer):
        own = file.group(group, "vars")
        keys = [] if own is None else sorted((k for k in file.keys(own) if k.isdecimal()), key=int)
        result[layer] = {key: file.array(own, key) for key in keys}
        return
    counts: Counter[str] = Counter()
    for variable in variables(layer):
        place = variable.rpartition("/")[0]
        own = file.group(group, f"{place}/vars")
        if own is not None and str(counts[place]) in file.keys(own):
            result.setdefault(layer, {})[variable] = file.array(own, str(counts[place]))
        counts[place] += 1


def _snake_case(name: str) -> str:
    """Keras's own conversion of class names (its ``naming.to_snake_case``)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Flat:
    """The older form."""

    def __init__(self, file: Hdf5, group: Any, version: int, backend: str | None, result: Weights) -> None:
        self._file = file
        self._group = group
        self._version = version
        self._backend = backend
        self._result = result

    def fill(self, network: Network) -> None:
        stored = self._file.texts(self._group, "layer_names") or []
        groups = {name: group for name in stored if (group := self._file.group(self._group, name)) is not None}
        layers = [layer for layer in network.layers if not layer.operation]
        own = [layer for layer in layers if any(self._slots(leaf) for leaf in _leaves(layer))]
        full = [name for name, group in groups.items() if self._file.texts(group, "weight_names")]
        places = {layer.name: layer.name for layer in layers}
        if any(layer.name not in groups for layer in own) and len(own) == len(full):
            places |= {layer.name: name for layer, name in zip(own, full, strict=True)}  # as Keras itself does
        for layer in layers:
            if (group := groups.get(places[layer.name])) is not None:
                self._fill_layer(layer, group)

    def _fill_layer(self, layer: Layer, group: Any) -> None:
        names = self._file.texts(group, "weight_names") or []
        arrays = [self._file.array(group, name) for name in names if "seed_generator" not in name]
        if layer.network is None and not is_known(layer):
            self._result[layer] = {str(place): array for place, array in enumerate(arrays)}
            return
        leaves = [(leaf, trains) for leaf in _leaves(layer) for trains in self._slots(leaf)]
        order = [leaf for leaf, trains in leaves if trains] + [leaf for leaf, trains in leaves if not trains]
        if len(order) != len(arrays):
            raise SurgeryError(
                f"{self._file.path}: has {len(arrays)} weights for layer {layer.name!r} ({layer.type}), which takes "
                f"{len(order)}; the weights are of another network"
            )
        own: dict[Layer, list[Array]] = {}
        for leaf, array in zip(order, arrays, strict=True):
            own.setdefault(leaf, []).append(array)
        for leaf, stored in own.items():
            upgraded = upgrade_arrays(leaf.type, leaf.config, stored, self._version, self._backend)
            self._result[leaf] = dict(zip(variables(leaf), upgraded, strict=True))

    def _slots(self, layer: Layer) -> list[bool]:
        """For each array that is stored for a layer, whether it is trained."""
        names = variables(layer)
        count = stored_count(layer.type, layer.config, self._version)
        if count is not None:
            return [layer.trainable] * count
        return [layer.trainable and name.rpartition("/")[2] not in _STATE for name in names]


def _leaves(layer: Layer) -> Iterator[Layer]:
    inside = layer.network.layers if layer.network is not None else layer.wrapped
    if layer.network is None and not layer.wrapped:
        yield layer
    for inner in inside:
        if not inner.operation:
            yield from _leaves(inner)
