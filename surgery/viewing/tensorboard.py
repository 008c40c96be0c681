"""A training as TensorBoard's event files: scalars, the graph, histograms of the weights."""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.training.callbacks import Callback, Plan
from surgery.training.history import Record

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes event files; ``tensorboard --logdir FOLDER`` shows them, also while the training goes on.

    Every training gets a folder of its own, named by the time, with two runs: `train` has the loss of each step, the
    figures of each epoch, the graph and the weights' histograms; `validation` what was watched. A figure has the same
    tag in both, so that they are drawn into one chart.

    Args:
        folder: Where to.
        model: What is trained, for the graph; without one none is written.
        histograms: Whether to write the weights' histograms, before the training and after each epoch.

    Raises:
        SurgeryError: tensorboard is missing.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: ir.Model | None = None, *, histograms: bool = True
    ) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise SurgeryError("event files need tensorboard; install it with: pip install 'onnx-surgery[tensorboard]'")
        self._folder, self._model, self._histograms = Path(folder), model, histograms
        self._train: _Events | None = None
        self._validation: _Events | None = None

    def on_train_begin(self, plan: Plan) -> None:
        run = _new_folder(self._folder / time.strftime("%Y-%m-%dT%H-%M-%S"))
        self._plan = plan
        self._train = _Events(run / "train")
        if plan.validation:
            self._validation = _Events(run / "validation")
        if self._model is not None:
            self._train.write(graph_def=_graph(self._model.graph).SerializeToString())
        for record in plan.past:
            self._scalars(record)
        self._weights(plan.past[-1]["epoch"] if plan.past else 0)

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        assert self._train is not None
        self._train.scalars({"step_loss": loss}, (epoch - 1) * self._plan.steps + step)

    def on_epoch_end(self, record: Record) -> None:
        self._scalars(record)
        self._weights(record["epoch"])

    def on_train_end(self) -> None:
        for events in (self._train, self._validation):
            if events is not None:
                events.close()

    def _scalars(self, record: Record) -> None:
        assert self._train is not None
        figures = {key: value for key, value in record.items() if key != "epoch" and isinstance(value, float)}
        watched = {key[4:]: value for key, value in figures.items() if key.startswith("val_")}
        own = {key: value for key, value in figures.items() if not key.startswith("val_")}
        self._train.scalars(own, record["epoch"])
        if self._validation is not None:
            self._validation.scalars(watched, record["epoch"])

    def _weights(self, epoch: int) -> None:
        if not self._histograms:
            return
        assert self._train is not None
        self._train.histograms(self._plan.weights(), epoch)


def _new_folder(path: Path) -> Path:
    """Makes a folder that was not there, with a number behind its name where needed."""
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = path.with_name(f"{path.name.split('.')[0]}.{number}")
        except OSError as error:
            raise SurgeryError(f"{path}: cannot be written ({error.strerror})") from error
    return path


class _Events:
    """One event file, a run of its own.

    Raises:
        SurgeryError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(open(self._path, "wb"))  # noqa: SIM115
        except OSError as error:
            raise SurgeryError(f"{self._path}: cannot be written ({error.strerror})") from error
        self.write(file_version="brain.Event:2")

    def write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise SurgeryError(f"{self._path}: cannot be written ({error.strerror})") from error

    def scalars(self, figures: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self.write(step=step, summary=Summary(value=values))

    def histograms(self, arrays: dict[str, np.ndarray], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        finite = {tag: array[np.isfinite(array)].astype(np.float64) for tag, array in arrays.items()}
        values = [Summary.Value(tag=tag, histo=_histogram(array)) for tag, array in finite.items() if array.size]
        self.write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()


def _histogram(numbers: np.ndarray, bins: int = 30) -> Any:
    """The numbers in bins of equal width."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    counts, edges = np.histogram(numbers, bins)
    return HistogramProto(
        min=numbers.min(),
        max=numbers.max(),
        num=numbers.size,
        sum=numbers.sum(),
        sum_squares=(numbers**2).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )


def _graph(graph: ir.Graph) -> Any:
    """The graph as TensorFlow's GraphDef: a node for each operator, input and parameter."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    names: dict[ir.Value | None, str] = {}
    nodes = list(_definitions(graph, names))
    return GraphDef(node=nodes)


def _definitions(graph: ir.Graph, names: dict[ir.Value | None, str]) -> Iterator[Any]:
    taken: set[str] = set()

    def unique(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for value in [*graph.inputs, *graph.initializers.values()]:
        names[value] = unique(str(value.name))
        yield _definition(names[value], "Placeholder" if value.is_graph_input() else "Const", [], [value])
    for node in graph:
        name = unique(node.name or node.op_type)
        for index, output in enumerate(node.outputs):
            names[output] = name if index == 0 else f"{name}:{index}"
        sources = [names[value] for value in node.inputs if value is not None]
        yield _definition(name, node.op_type, sources, node.outputs, node.attributes)


def _definition(name: str, op: str, inputs: list[str], outputs: Any, attributes: Any = None) -> Any:
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    def shape(value: ir.Value) -> Any:
        if value.shape is None:
            return TensorShapeProto(unknown_rank=True)
        dims = [TensorShapeProto.Dim(size=d if isinstance(d, int) else -1) for d in value.shape]
        return TensorShapeProto(dim=dims)

    shapes = AttrValue(list=AttrValue.ListValue(shape=[shape(value) for value in outputs]))
    found = {"_output_shapes": shapes}
    for key, attribute in (attributes or {}).items():
        found[key] = AttrValue(s=str(attribute.value)[:200].encode())  # a constant's tensor may be long
    return NodeDef(name=name, op=op, input=inputs, attr=found)
