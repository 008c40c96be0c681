"""Reads TensorFlow's files as data: the graph as protobuf, the values of variables from the checkpoint's own reader.

Nothing of a file's graph is run to read it: TensorFlow's loaders run what a graph calls its initialization, and such a
graph may write files.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import check_start
from converters.registry import load_extra
from surgery.errors import SurgeryError, nearest

__all__ = ["VARIABLES", "Source", "is_tensorflow", "read_source", "tensorflow"]

_CHECKPOINT = (".meta", ".index")
_MOST_BYTES = 2**31 - 1  # of a protobuf message
_MOST_REPEATED = 2**24  # numbers of constants that the file does not hold one by one
_SHOWN = 8
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Source:
    """A network as read.

    Attributes:
        path: What errors name.
        graph: The graph (GraphDef), with functions and variables.
        inputs: Public name → tensor, such as ``{"x": "serving_default_x:0"}``.
        outputs: Likewise.
        variables: The values of variables, by the name of the node that stands for each.
        chosen: Whether the outputs were named, by a signature or the user.
    """

    path: Path
    graph: Any
    inputs: dict[str, str]
    outputs: dict[str, str]
    variables: Mapping[str, np.ndarray]
    chosen: bool


def is_tensorflow(path: Path) -> bool:
    """Whether `path` is one of TensorFlow's: a SavedModel's folder or file, a ``.pb``, a checkpoint's ``.meta``."""
    if path.is_dir():
        return (path / "saved_model.pb").is_file()
    return path.suffix in (".pb", *_CHECKPOINT)


def tensorflow() -> Any:
    """Returns TensorFlow, quiet.

    Raises:
        SurgeryError: It is not installed.
    """
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it would say that they are on, whatever the level
    module = load_extra("tensorflow", "tensorflow", "converting from TensorFlow")
    module.get_logger().setLevel(logging.ERROR)
    return module


def read_source(
    path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, signature: str | None
) -> Source:
    """Reads a SavedModel, a frozen graph or a checkpoint.

    Args:
        path: Its folder, or its ``.pb`` or ``.meta``.
        inputs: The input tensors, where they are not to be found.
        outputs: The output tensors, likewise.
        signature: Which signature of a SavedModel.

    Raises:
        SurgeryError: It is damaged or something else, or has no such inputs, outputs or signature.
    """
    tensorflow()
    if path.name == "saved_model.pb":
        path = path.parent
    if path.is_dir():
        source = _read_saved_model(path, signature)
    elif signature is not None:
        raise SurgeryError(f"{path}: has no signatures, as only a SavedModel has; drop `signature`")
    elif path.suffix in _CHECKPOINT:
        source = _read_checkpoint(path)
    else:
        source = _read_graph(path)
    if inputs:
        source.inputs = {_name(tensor): _tensor(source, tensor, "input") for tensor in inputs}
    if outputs:
        source.outputs = {_name(tensor): _tensor(source, tensor, "output") for tensor in outputs}
        source.chosen = True
    _check_constants(source)
    return source


def _name(tensor: str) -> str:
    """The public name of a tensor: its node's, where it is the first output."""
    return str(tensor).removesuffix(":0")


def _tensor(source: Source, name: str, what: str) -> str:
    node, _, index = str(name).partition(":")
    nodes = {each.name for each in source.graph.node}
    if node not in nodes or (index and not index.isdigit()):
        raise SurgeryError(f"{source.path}: has no {what} {name!r}{nearest(node, nodes)}")
    return f"{node}:{index or 0}"


def _message(path: Path, kind: str) -> Any:
    """Returns the protobuf message in a file."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

    types = {
        "SavedModel": saved_model_pb2.SavedModel,
        "GraphDef": graph_pb2.GraphDef,
        "MetaGraphDef": meta_graph_pb2.MetaGraphDef,
    }
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise SurgeryError(f"{path}: has {size:,} bytes, more than a protobuf message may have")
        content = path.read_bytes()
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_start(path, content)
    try:
        return types[kind].FromString(content)
    except DecodeError as error:
        raise SurgeryError(f"{path}: is damaged or not TensorFlow's ({error}); copy it again") from error


def _read_graph(path: Path) -> Source:
    """A GraphDef whose variables are constants."""
    graph = _message(path, "GraphDef")
    if not graph.node:
        raise SurgeryError(f"{path}: has no nodes; is it a frozen TensorFlow graph?")
    variables = [node.name for node in graph.node if node.op in VARIABLES]
    if variables:
        shown = ", ".join(variables[:_SHOWN])
        raise SurgeryError(
            f"{path}: is not frozen: it has variables ({shown}) whose values are elsewhere; convert the checkpoint's "
            ".meta or the SavedModel's folder"
        )
    return Source(path, graph, {}, {}, {}, False)


VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable")
"""Operators that stand for a variable."""


class _Values(Mapping[str, np.ndarray]):
    """The values of a checkpoint's variables, read when they are asked for."""

    def __init__(self, prefix: Path, keys: Mapping[str, str], path: Path) -> None:
        import tensorflow as tf

        self._path = path
        try:
            self._reader = tf.train.load_checkpoint(str(prefix))
            self._shapes = self._reader.get_variable_to_shape_map()
        except Exception as error:  # of many kinds
            raise SurgeryError(f"{path}: the values of its variables cannot be read ({_line(error)})") from error
        self._keys = {node: key for node, key in keys.items() if key in self._shapes}

    def __getitem__(self, node: str) -> np.ndarray:
        key = self._keys[node]
        try:
            return np.asarray(self._reader.get_tensor(key))
        except Exception as error:  # of many kinds
            raise SurgeryError(
                f"{self._path}: the value of variable {node!r} cannot be read ({_line(error)}); copy the files again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _own_keys(graph: Any) -> dict[str, str]:
    """The keys of variables in a checkpoint of TensorFlow 1: their names."""
    variables = [node for node in graph.node if node.op in VARIABLES]
    return {n.name: (n.attr["shared_name"].s.decode() if n.op == "VarHandleOp" else "") or n.name for n in variables}


def _read_checkpoint(path: Path) -> Source:
    meta = path.with_suffix(".meta")
    if not meta.is_file():
        raise SurgeryError(f"{path}: its graph, {meta.name}, does not lie next to it")
    prefix = path.with_suffix("")
    if not prefix.with_name(f"{prefix.name}.index").is_file():
        raise SurgeryError(f"{path}: its values, {prefix.name}.index and {prefix.name}.data-…, do not lie next to it")
    graph = _message(meta, "MetaGraphDef").graph_def
    if not graph.node:
        raise SurgeryError(f"{meta}: has no nodes; is it the graph of a TensorFlow checkpoint?")
    return Source(path, graph, {}, {}, _Values(prefix, _own_keys(graph), path), False)


def _read_saved_model(folder: Path, signature: str | None) -> Source:
    saved = _message(folder / "saved_model.pb", "SavedModel")
    graphs = [each for each in saved.meta_graphs if "serve" in each.meta_info_def.tags] or list(saved.meta_graphs[:1])
    if not graphs or not graphs[0].graph_def.node:
        raise SurgeryError(f"{folder}: has no graph in its saved_model.pb; is it a SavedModel?")
    graph = graphs[0]
    chosen = _signature(folder, graph, signature)
    variables: Mapping[str, np.ndarray] = {}
    if (folder / "variables" / "variables.index").is_file():
        keys = _own_keys(graph.graph_def) | _restored_keys(graph)
        variables = _Values(folder / "variables" / "variables", keys, folder)
    inputs, outputs = ({name: info.name for name, info in ends.items()} for ends in (chosen.inputs, chosen.outputs))
    return Source(folder, graph.graph_def, dict(sorted(inputs.items())), dict(sorted(outputs.items())), variables, True)


def _signature(folder: Path, graph: Any, name: str | None) -> Any:
    names = [each for each in graph.signature_def if not each.startswith("_")]
    names = [each for each in names if graph.signature_def[each].outputs]
    if name is None:
        name = "serving_default" if "serving_default" in names or len(names) != 1 else names[0]
    if name not in names:
        shown = ", ".join(sorted(names)[:_SHOWN]) or "none"
        raise SurgeryError(f"{folder}: has no signature {name!r}; it has {shown}; say which with --option signature=…")
    return graph.signature_def[name]


def _restored_keys(graph: Any) -> dict[str, str]:
    """Variable's node → key in the checkpoint, as the function of TensorFlow 2 that restores them says."""
    functions = {each.signature.name: each for each in graph.graph_def.library.function}
    caller = next((n for n in graph.graph_def.node if n.name == graph.saver_def.restore_op_name), None)
    function = functions.get(caller.attr["f"].func.name) if caller is not None else None
    if function is None or caller is None:
        return {}
    from tensorflow.python.framework.tensor_util import MakeNdarray

    nodes = {node.name: node for node in function.node_def}
    arguments = dict(zip((arg.name for arg in function.signature.input_arg), caller.input, strict=False))
    found = {}
    for node in function.node_def:
        if node.op != "AssignVariableOp" or len(node.input) < 2:
            continue
        handle, value = node.input[:2]
        while (maker := nodes.get(value.partition(":")[0])) is not None and maker.op == "Identity":
            value = maker.input[0]
        names = nodes.get(maker.input[1].partition(":")[0]) if maker is not None and len(maker.input) > 1 else None
        index = value.rpartition(":")[2]
        if maker is None or maker.op != "RestoreV2" or names is None or names.op != "Const" or not index.isdigit():
            continue
        keys = MakeNdarray(names.attr["value"].tensor).ravel()
        if handle in arguments and int(index) < len(keys):
            found[arguments[handle].partition(":")[0]] = keys[int(index)].decode()
    return found


def _check_constants(source: Source) -> None:
    """Refuses constants that would be far bigger than the file."""
    repeated = 0
    functions = [function.node_def for function in source.graph.library.function]
    for node in (node for nodes in (source.graph.node, *functions) for node in nodes):
        if node.op != "Const":
            continue
        tensor = node.attr["value"].tensor
        size = 1
        for dim in tensor.tensor_shape.dim:
            size *= max(0, dim.size)
        if not tensor.tensor_content:
            repeated += size
        if repeated > _MOST_REPEATED:
            raise SurgeryError(f"{source.path}: constant {node.name!r} is declared with {size:,} numbers and has few")
