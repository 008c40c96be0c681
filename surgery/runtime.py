"""ONNX Runtime: which build is installed, which device it can use, and sessions."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.proto import BIG, light_proto

__all__ = ["Device", "describe", "has_training_kernels", "load_runtime", "providers", "session"]

Device = Literal["cpu", "cuda", "auto"]


@functools.cache
def load_runtime() -> Any:
    """Imports and returns `onnxruntime`.

    Raises:
        SurgeryError: None is installed; the message names the extras that install one.
    """
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        import onnxruntime
    except ImportError as error:
        raise SurgeryError(
            f"ONNX Runtime cannot be imported ({error}); install one of: pip install 'onnx-surgery[cpu]', [cuda], "
            "[stock] or [stock-cuda]"
        ) from error
    root.handlers[:] = handlers  # the training build adds one, for everybody's messages
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


@functools.cache
def has_training_kernels() -> bool:
    """Whether the runtime is the onnxruntime-training build, which has fused gradient kernels (ConvGrad, …)."""
    load_runtime()
    from onnxruntime.capi import _pybind_state

    return hasattr(_pybind_state, "GradientGraphBuilder")


def describe() -> str:
    """The runtime in words, as ``onnxruntime-training 1.19.2 (CPU)``."""
    runtime = load_runtime()
    build = "onnxruntime-training" if has_training_kernels() else "onnxruntime"
    return f"{build} {runtime.__version__} ({'CUDA' if _has_cuda() else 'CPU'})"


def _has_cuda() -> bool:
    return "CUDAExecutionProvider" in load_runtime().get_available_providers()


@functools.cache
def _preload_cuda() -> None:
    """Loads NVIDIA's libraries from their wheels, where the runtime's own loader does not look."""
    runtime = load_runtime()
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
        return
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for library in sorted(Path(folder).glob("*/lib/lib*.so.*")):
            with contextlib.suppress(OSError):  # what is missing shows when the session starts
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def providers(device: Device) -> list[str]:
    """Returns the execution providers of `device`; ``auto`` takes CUDA where it starts.

    Raises:
        SurgeryError: There is no such device; or CUDA was asked for, which the installed runtime lacks or cannot start.
    """
    if device not in get_args(Device):
        raise SurgeryError(f"no device is called {device!r}; there are {', '.join(get_args(Device))}")
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if not _has_cuda():
        if device == "auto":
            return ["CPUExecutionProvider"]
        raise SurgeryError(
            f"no CUDA in the installed {describe()}; install it with: pip install 'onnx-surgery[cuda]' (CUDA 11, with "
            "training kernels) or 'onnx-surgery[stock-cuda]' (the newest CUDA), after uninstalling this one"
        )
    _preload_cuda()
    reason = _cuda_failure()
    if reason is None:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device == "auto":
        return ["CPUExecutionProvider"]
    raise SurgeryError(f"CUDA cannot start: {reason}; check the driver with nvidia-smi, or use --device cpu")


@functools.cache
def _cuda_failure() -> str | None:
    """Why a session cannot run on CUDA; None if it can."""
    value = ir.val("x", ir.DataType.FLOAT, (1,))
    node = ir.node("Relu", [value])
    node.outputs[0].name, node.outputs[0].type = "y", value.type
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 13}, name="probe")
    runtime = load_runtime()
    try:
        probe = runtime.InferenceSession(
            ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString(), providers=["CUDAExecutionProvider"]
        )
    except Exception as error:
        return str(error).strip().splitlines()[0]
    if "CUDAExecutionProvider" not in probe.get_providers():
        return "its libraries (CUDA, cuDNN) or a GPU are missing"
    return None


def session(
    model: ir.Model,
    providers: Sequence[str],
    *,
    threads: int | None = None,
    plan: bool = True,
    spin: bool = True,
) -> Any:
    """Returns an `onnxruntime.InferenceSession` of `model`.

    Args:
        model: A model of any size; its weights may lie in files.
        providers: Execution providers, from `providers`.
        threads: How many threads an operator may use; all cores by default.
        plan: Let the runtime lay out a run's memory in one block from its second run on. The block comes on top of what
            the first run took: where that is much, as in training, the peak is lower without.
        spin: Let its threads wait actively after a run, for the next one to begin sooner; it takes time from others'.

    Raises:
        SurgeryError: The runtime refuses the model; the message is its own.
    """
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = plan
    if threads:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    proto, weights = light_proto(model, BIG)
    names, values = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        weight = weights.get(tensor.name) or model.graph.initializers[tensor.name].const_value
        assert weight is not None
        if weight.dtype.numpy().isbuiltin == 1:
            names.append(tensor.name)
            values.append(runtime.OrtValue.ortvalue_from_numpy(weight.numpy()))
        else:  # NumPy has no such type of its own
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = weight.tobytes()
    options.add_external_initializers(names, values)
    # Stock ONNX Runtime (1.32) takes out a Dropout whose mask nobody reads, in training mode too.
    trains = any(n.op_type == "Dropout" and len(n.inputs) > 2 and n.inputs[2] is not None for n in model.graph)
    kept = {"disabled_optimizers": ["EliminateDropout"]} if trains else {}
    try:
        return runtime.InferenceSession(proto.SerializeToString(), options, providers=list(providers), **kept)
    except Exception as error:
        raise SurgeryError(f"{describe()} refuses the model: {str(error).strip().splitlines()[0]}") from error
