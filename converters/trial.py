"""Runs of a converted model on made-up inputs, in bounded time and memory."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.marks import preprocessing
from surgery.proto import light_proto
from surgery.runtime import load_runtime

__all__ = ["LIGHT", "NotTriedError", "has_free_sizes", "made_up_inputs", "run", "try_once", "weights_as_inputs"]

LIGHT = 2**16  # bytes: larger weights are checked by shape and type, and run as inputs, without copies of them
_MOST_INPUT, _MOST_BYTES = 2**28, 2**31  # the latter of all that a run computes
_MOST_PRODUCTS = 2e11  # of convolutions and the like: ten times VGG-16's
_MOST_SECONDS = 60.0
_ANY_BATCH = ((1, 64), (12, 64))  # the batch and other free sizes to try; 12 can be split into 2, 3, 4 or 6
_ANY_SIZE = ((1, 64), (1, 8), (1, 224))
_log = logging.getLogger(__name__)


class NotTriedError(SurgeryError):
    """A run that would take too much, or needs what the runtime does not have."""


def made_up_inputs(model: ir.Model, *, batch: int = 1, free: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random inputs by name: what random pixels become where the model says how, else normal numbers.

    Integers are small, or those of rows where they look up a table.

    Args:
        model: The model.
        batch: The first dimension of an input that may have any.
        free: Its other dimensions that may have any size.
        seed: Of the numbers.

    Raises:
        NotTriedError: They would be too big.
    """
    rng = np.random.default_rng(seed)
    inputs = {}
    size = 0
    for value in model.graph.inputs:
        dims = [d if isinstance(d, int) else batch if axis == 0 else free for axis, d in enumerate(value.shape or [])]
        size += 4 * math.prod(dims)
        if size > _MOST_INPUT:
            raise NotTriedError(f"a run takes {size / 2**30:.1f} GB of input")
        kind = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if kind.kind in "iub":
            high = 2 if kind.kind == "b" else _rows(value)
            inputs[str(value.name)] = rng.integers(0, high, dims).astype(kind)
        elif value.dtype == ir.DataType.STRING:
            inputs[str(value.name)] = np.full(dims, "", object)
        else:
            numbers = rng.standard_normal(dims, np.float32)
            how = preprocessing(model, str(value.name))
            if how is not None:
                mean, std = np.mean(how.mean), np.mean(how.std)
                numbers = (rng.uniform(0, 255, dims) * how.scale - mean) / std
            inputs[str(value.name)] = numbers.astype(kind)
    return inputs


def _rows(indices: ir.Value) -> int:
    """The number of rows of the smallest table that `indices` look up; 4 where they do not."""
    sizes = [4]
    for node in indices.consumers():
        if node.op_type in ("Cast", "Identity"):
            sizes.append(_rows(node.outputs[0]))
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and table is not indices and table.shape is not None:
            size = table.shape[node.attributes.get_int("axis", 0)]
            sizes.append(size if isinstance(size, int) else 1)
    return max(sizes) if len(sizes) == 2 else min(sizes)


def has_free_sizes(model: ir.Model, after: int = 0) -> bool:
    """Whether an input has a dimension, from axis `after` on, that may have any size."""
    return any(not isinstance(d, int) for value in model.graph.inputs for d in list(value.shape or [])[after:])


def try_once(model: ir.Model, source: Path) -> None:
    """Runs `model` once on made-up inputs, where a runtime is installed that can; says in the log where not.

    Raises:
        SurgeryError: The run fails, which is a fault of the converter or of the source.
    """
    try:
        load_runtime()
    except SurgeryError:
        return
    any_size = has_free_sizes(model, after=1)
    sizes = _ANY_SIZE if any_size else _ANY_BATCH if has_free_sizes(model) else _ANY_BATCH[:1]
    for batch, free in sizes:
        try:
            run(model, made_up_inputs(model, batch=batch, free=free))
            return
        except NotTriedError as error:
            _log.warning("%s: the converted model was not tried: %s", source, error)
            return
        except SurgeryError as error:
            reason = error
    if not any_size:
        raise SurgeryError(f"{source}: the converted model does not run ({reason})") from reason
    _log.warning("%s: the converted model was not tried: its inputs' sizes are not known (%s)", source, reason)


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs of `model` by name, run as it stands, without optimizations.

    Raises:
        SurgeryError: The runtime refuses the model, or the run fails, or it takes too much.
    """
    runtime = load_runtime()
    proto, _ = light_proto(model, LIGHT)
    weights = weights_as_inputs(proto, model)
    _check_cost(proto, inputs)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they pay where a session runs often
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    limit = runtime.RunOptions()
    timer = threading.Timer(_MOST_SECONDS, lambda: setattr(limit, "terminate", True))
    timer.daemon = True
    try:
        session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        timer.start()
        found = session.run(None, {**inputs, **weights}, limit)
    except Exception as error:
        raise _failure(error, bool(limit.terminate)) from error
    finally:
        timer.cancel()
    return {str(output.name): array for output, array in zip(model.graph.outputs, found, strict=True)}


def _failure(error: Exception, terminated: bool) -> SurgeryError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if terminated:
        return NotTriedError(f"a run takes more than {_MOST_SECONDS:.0f} s")
    if any(words in reason for words in ("NOT_IMPLEMENTED", "Could not find an implementation", "is not a registered")):
        return NotTriedError(reason)
    return SurgeryError(reason)


def weights_as_inputs(proto: onnx.ModelProto, model: ir.Model) -> dict[str, np.ndarray]:
    """Makes inputs of the weights that `proto` only refers to, and returns them; small ones it gets back."""
    feed = {}
    for index in reversed(range(len(proto.graph.initializer))):
        message = proto.graph.initializer[index]
        tensor = model.graph.initializers[message.name].const_value
        if message.data_location != onnx.TensorProto.EXTERNAL or tensor is None:
            continue
        array = tensor.numpy()
        if tensor.nbytes <= LIGHT or array.dtype.isbuiltin != 1:  # bfloat16 and the like
            message.ClearField("data_location")
            message.ClearField("external_data")
            message.raw_data = tensor.tobytes()
            continue
        feed[message.name] = array
        proto.graph.input.append(onnx.helper.make_tensor_value_info(message.name, message.data_type, message.dims))
        del proto.graph.initializer[index]
    return feed


def _check_cost(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    """Refuses a run on `inputs` that computes too much, as far as the shapes tell."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    for value in light.graph.input:
        if value.name in inputs:
            kind, shape = value.type.tensor_type.elem_type, inputs[value.name].shape
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    del light.graph.value_info[:]
    for output in light.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return  # whoever runs it says what is wrong
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    size = sum(4 * math.prod(shapes[name]) for name in made if name in shapes)
    if size > _MOST_BYTES:
        raise NotTriedError(f"a run takes {size / 2**30:.1f} GB")
    products = sum(_products(node, shapes) for node in graph.node)
    if products > _MOST_PRODUCTS:
        raise NotTriedError(f"a run takes {products:.1g} multiplications")


def _products(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> float:
    """How many multiplications a convolution or a matrix product takes; 0 for other operators."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0.0
    x, weight, out = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not weight or not out:
        return 0.0
    if node.op_type == "MatMul":
        return float(math.prod(out)) * weight[max(len(weight) - 2, 0)]
    if node.op_type == "ConvTranspose":
        return float(math.prod(x)) * math.prod(weight[1:])
    if node.op_type == "Conv":
        return float(math.prod(out)) * math.prod(weight[1:])
    return float(math.prod(weight)) * out[0]
