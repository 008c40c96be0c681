"""Keras's configuration of a network, of any version, as a `Network`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from converters.keras.legacy import looks_like_keras_1, upgrade_layer
from converters.keras.network import Call, Layer, Network, Ref, references
from surgery.errors import SurgeryError

__all__ = ["Parser", "major_version"]

_MOST_LAYERS, _MOST_DEPTH = 20_000, 32  # published networks have fewer than 2,000 layers and 4 levels of models
_NETWORKS = ("Sequential", "Functional", "Model")
_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")  # Keras 2.4 to 2.15: a function of TensorFlow
_WRAPPERS = ("TimeDistributed", "Bidirectional")


def major_version(text: str | None, config: Any) -> int:
    """Keras's major version: what the file says, else what its arguments' names and its form tell."""
    found = re.match(r"\s*(\d+)", text or "")
    if found:
        return min(3, max(1, int(found[1])))
    entries = list(_entries(config))
    if looks_like_keras_1([e["config"] for e in entries if isinstance(e.get("config"), dict)]):
        return 1
    nodes = (node for e in entries for node in _as_list(e.get("inbound_nodes")))
    return 3 if any("module" in e for e in entries) or any(isinstance(n, dict) for n in nodes) else 2


def _as_list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    yield from (e for e in _as_list(layers) if isinstance(e, dict))


class Parser:
    """Reads one file's configuration.

    Args:
        path: The file, for messages.
        version: Keras's major version.
    """

    def __init__(self, path: Path, version: int) -> None:
        self._path = path
        self._version = version
        self._count = 0

    def parse(self, data: Any) -> Network:
        """Returns the network of a model's configuration: ``class_name`` and ``config``.

        Raises:
            SurgeryError: It is not that of a Sequential or functional model, or inconsistent.
        """
        try:
            type, config = data["class_name"], data["config"]
            if _class(type) not in _NETWORKS and not (isinstance(config, dict) and "layers" in config):
                raise self._error(
                    f"is a model of the class {type}, whose call is Python code and not in the file; save a Sequential "
                    "or functional model, or convert with --via tf2onnx"
                )
            network = self._network(type, config, "", 0)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
            raise self._error(f"its configuration is not one of Keras ({error!r})") from error
        _inherit(network, False, True)
        return network

    def _error(self, message: str) -> SurgeryError:
        return SurgeryError(f"{self._path}: {message}")

    def _network(self, type: str, config: Any, name: str, depth: int) -> Network:
        if depth > _MOST_DEPTH:
            raise self._error(f"has models in models to a depth of more than {_MOST_DEPTH}; no network has")
        entries = config["layers"] if isinstance(config, dict) else config
        if not isinstance(entries, list):
            raise self._error(f"the layers of {name or type} are not a list")
        if isinstance(config, dict):
            name = str(config.get("name") or name)
        layers: list[Layer] = []
        names: set[str] = set()
        for index, entry in enumerate(entries):
            self._count += 1
            if self._count > _MOST_LAYERS:
                raise self._error(f"has more than {_MOST_LAYERS:,} layers; no network has")
            layer = self._layer(entry, f"{str(entry['class_name']).lower()}_{index + 1}", depth)
            if layer.name in names:
                raise self._error(f"has two layers named {layer.name!r}")
            names.add(layer.name)
            layers.append(layer)
        if _class(type) == "Sequential" or "input_layers" not in config:
            return self._sequential(name, config, layers)
        return self._functional(name, config, layers, entries)

    def _layer(self, entry: dict[str, Any], default: str, depth: int) -> Layer:
        type, raw = _class(entry["class_name"]), entry["config"]
        config = raw if isinstance(raw, dict) else {}
        name = str(entry.get("name") or config.get("name") or default)
        layer = Layer(name, type, config, trainable=bool(config.get("trainable", True)))
        if type in _NETWORKS or (isinstance(config.get("layers"), list) and "input_layers" in config):
            layer.network = self._network(type, raw, name, depth + 1)
            return layer
        if type in _FUNCTIONS:
            layer.operation, layer.type = True, str(config.get("function", type))
            return layer
        layer.operation = self._is_operation(entry, config)
        if self._version == 1:
            try:
                layer.type, layer.config = upgrade_layer(type, config)
            except SurgeryError as error:
                raise self._error(f"layer {name!r} ({type}): {error}") from error
        if layer.type in _WRAPPERS:
            if depth > _MOST_DEPTH:
                raise self._error(f"layer {name!r} wraps others to a depth of more than {_MOST_DEPTH}")
            inner = layer.config["layer"]
            both = [inner, layer.config.get("backward_layer") or inner] if type == "Bidirectional" else [inner]
            layer.wrapped = [self._layer(each, "layer", depth + 1) for each in both]
        return layer

    def _is_operation(self, entry: dict[str, Any], config: dict[str, Any]) -> bool:
        """Whether it is a function of ``keras.ops``; a legacy file does not say so, but layers have more arguments."""
        module = entry.get("module")
        if isinstance(module, str):
            return ".ops." in module
        known = config.keys() & {"trainable", "dtype", "batch_shape", "batch_input_shape"}
        return self._version >= 3 and not known

    def _sequential(self, name: str, config: Any, layers: list[Layer]) -> Network:
        if not layers:
            raise self._error(f"the model {name!r} has no layers")
        if layers[0].type != "InputLayer":
            layers = [Layer(_free("input", layers), "InputLayer", self._input_config(config, layers[0])), *layers]
        for before, layer in itertools.pairwise(layers):
            layer.calls = [Call([Ref(before.name, 0)], {})]
        return Network(name, layers, [Ref(layers[0].name, 0)], [Ref(layers[-1].name, 0)])

    def _input_config(self, config: Any, first: Layer) -> dict[str, Any]:
        """What is known of the input: of the first layer's arguments, of its network, or of the model's own."""
        inner = first
        while inner.network is not None and inner.network.layers:
            inner = inner.network.layers[0]
        given = inner.config
        result = {"dtype": given.get("dtype") or "float32"}
        shape = given.get("batch_input_shape") or given.get("batch_shape")
        if shape is None and isinstance(config, dict):
            shape = config.get("build_input_shape") or config.get("batch_input_shape")
        if shape is None and given.get("input_dim") is not None and inner.type != "Embedding":
            shape = [None, given["input_dim"]]
        if inner.type == "Embedding":
            shape = shape or [None, given.get("input_length")]
            result["dtype"] = "int32"
        return result | {"batch_shape": shape}

    def _functional(self, name: str, config: dict[str, Any], layers: list[Layer], entries: list[Any]) -> Network:
        known = {layer.name for layer in layers}
        for layer, entry in zip(layers, entries, strict=True):
            for node in entry.get("inbound_nodes") or []:
                call = _call_3(node) if isinstance(node, dict) else _call_2(node, known)
                if any(True for _ in references(call.args)) or any(True for _ in references(call.kwargs)):
                    layer.calls.append(call)
        inputs, outputs = (_endings(config[key], known) for key in ("input_layers", "output_layers"))
        if not outputs:
            raise self._error(f"the model {name!r} has no outputs")
        network = Network(name, layers, inputs, outputs)
        _count_from_zero(network)
        return network


def _class(type: Any) -> str:
    """The class without the package that registered it."""
    return str(type).rsplit(">", 1)[-1]


def _free(name: str, layers: list[Layer]) -> str:
    names = {layer.name for layer in layers}
    while name in names:
        name += "_"
    return name


def _is_ref(data: Any, known: set[str]) -> bool:
    return (
        isinstance(data, list | tuple)
        and len(data) in (3, 4)
        and isinstance(data[0], str)
        and data[0] in known
        and all(isinstance(n, int) for n in data[1:3])
    )


def _convert(data: Any, leaf: Callable[[Any], Any | None]) -> Any:
    """A copy of arguments in which `leaf` has replaced what it knows."""
    found = leaf(data)
    if found is not None:
        return found
    if isinstance(data, list | tuple):
        return [_convert(item, leaf) for item in data]
    if isinstance(data, dict):
        return {key: _convert(item, leaf) for key, item in data.items()}
    return data


def _call_3(node: dict[str, Any]) -> Call:
    """Keras 3: arguments as they were given, with descriptions of tensors in them."""

    def leaf(data: Any) -> Any | None:
        if isinstance(data, dict) and data.get("class_name") == "__keras_tensor__":
            layer, call, tensor = data["config"]["keras_history"]
            return Ref(str(layer), int(call), int(tensor))
        return None

    args, kwargs = node["args"], node.get("kwargs") or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError(f"a layer is given {args!r} and {kwargs!r}")
    return Call(_convert(args, leaf), _convert(kwargs, leaf))


def _call_2(node: Any, known: set[str]) -> Call:
    """Keras 1 and 2: a list of [layer, call, tensor, arguments]."""

    def leaf(data: Any) -> Any | None:
        return Ref(data[0], data[1], data[2]) if _is_ref(data, known) else None

    parts = [node] if _is_ref(node, known) else node
    given: list[Any] = []
    kwargs: dict[str, Any] = {}
    for part in parts:
        given.append(part[2] if part[0] == "_CONSTANT_VALUE" else Ref(str(part[0]), int(part[1]), int(part[2])))
        if len(part) > 3:
            kwargs |= _convert(part[3], leaf)
    return Call(given if len(given) == 1 else [given], kwargs)


def _endings(data: Any, known: set[str]) -> list[Ref]:
    def leaf(item: Any) -> Any | None:
        return Ref(item[0], item[1], item[2]) if _is_ref(item, known) else None

    return list(references(_convert(data, leaf)))


def _count_from_zero(network: Network) -> None:
    """Counts the calls of models in a model from 0: they start at 1 in files, but for Sequential ones of Keras 3."""
    models = {layer.name: layer for layer in network.layers if layer.network is not None}
    if not models:
        return
    everything = [
        *network.inputs,
        *network.outputs,
        *references([[c.args, c.kwargs] for x in network.layers for c in x.calls]),
    ]
    used: dict[str, set[int]] = {}
    for ref in everything:
        used.setdefault(ref.layer, set()).add(ref.call)
    late = {
        name
        for name, layer in models.items()
        if name in used
        and (max(used[name]) >= len(layer.calls) or (0 not in used[name] and layer.type != "Sequential"))
    }

    def leaf(data: Any) -> Any | None:
        if isinstance(data, Ref):
            return Ref(data.layer, data.call - 1, data.tensor) if data.layer in late else data
        return None

    for layer in network.layers:
        layer.calls = [Call(_convert(c.args, leaf), _convert(c.kwargs, leaf)) for c in layer.calls]
    network.inputs, network.outputs = _convert(network.inputs, leaf), _convert(network.outputs, leaf)


def _inherit(network: Network, shared: bool, trainable: bool) -> None:
    """Makes what is inside a shared or frozen model, or what such a layer wraps, shared or frozen too."""
    for layer in network.layers:
        layer.shared = shared or len(layer.calls) > 1
        layer.trainable = trainable and layer.trainable
        for inner in layer.wrapped:
            inner.shared, inner.trainable = layer.shared, layer.trainable and inner.trainable
        for owner in (layer, *layer.wrapped):
            if owner.network is not None:
                _inherit(owner.network, layer.shared, owner.trainable)
