"""PyTorch's exporters, told to leave Dropout and BatchNormalization in."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir
import torch

from converters.options import Dim, Shape, input_shapes
from converters.pytorch.clean import clean
from surgery.errors import SurgeryError
from surgery.proto import first_line
from surgery.quiet import quiet

__all__ = ["example", "export", "set_modes"]

_OPSET = 18  # what torch.onnx writes best
_IMAGE, _OTHER = 224, 16  # sizes to export with where any goes
_aten = torch.ops.aten
_DROPOUT = (_aten.dropout.default, _aten.dropout_.default)
# What else differs between training and inference: which argument says so, and what it is at inference.
_MODES: dict[Any, tuple[int, Any]] = {
    _aten.batch_norm.default: (5, False),
    _aten.instance_norm.default: (5, True),  # which has but the statistics of its input
    _aten.lstm.input: (6, False),
    _aten.gru.input: (6, False),
    _aten.rnn_tanh.input: (6, False),
    _aten.rnn_relu.input: (6, False),
    _aten.scaled_dot_product_attention.default: (4, 0.0),
    **dict.fromkeys(
        (
            _aten.feature_dropout.default, _aten.feature_dropout_.default, _aten.alpha_dropout.default,
            _aten.alpha_dropout_.default, _aten.feature_alpha_dropout.default, _aten.feature_alpha_dropout_.default,
        ),
        (2, False),
    ),
}  # fmt: skip
_ADAPTIVE = (
    *(_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.adaptive_avg_pool3d.default),
    *(_aten.adaptive_max_pool1d.default, _aten.adaptive_max_pool2d.default, _aten.adaptive_max_pool3d.default),
)
_log = logging.getLogger(__name__)


def export(
    network: Any, source: Path, shape: Shape | None, dtype: str | Mapping[str, str] | None, batch: int | None
) -> ir.Model:
    """Exports a module, script module or exported program; see `convert_pytorch`.

    Raises:
        SurgeryError: Its input's shape is not known, or PyTorch cannot export it.
    """
    if isinstance(network, torch.export.ExportedProgram):
        if shape is not None or dtype is not None or batch is not None:
            raise SurgeryError(f"{source}: knows its inputs; shape, dtype and batch are for other networks")
        return _export_program(network, source, {})
    inputs, dims = example(network, source, shape, dtype, batch or 1)
    if isinstance(network, torch.jit.ScriptModule):
        return _export_script(network, source, inputs, dims if batch is None else _without_batch(dims))
    program = _trace(network, source, inputs, dims if batch is None else _without_batch(dims))
    return _export_program(program, source, dims)


def _without_batch(dims: dict[str, dict[int, str]]) -> dict[str, dict[int, str]]:
    return {name: {axis: dim for axis, dim in free.items() if axis} for name, free in dims.items()}


def example(
    network: Any, source: Path, shape: Shape | None, dtype: str | Mapping[str, str] | None, batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Inputs to export with, and the dimensions that may have any size: by name, axis → the dimension's name.

    Raises:
        SurgeryError: No shape is given, or for an input that there is not.
    """
    names = _parameters(network)
    shapes = input_shapes(shape)
    if not shapes:
        raise SurgeryError(
            f"{source}: does not say its input's shape; give it with --shape, such as 3x224x224 (inputs: "
            f"{', '.join(names)})"
        )
    if "" in shapes and names:
        shapes = {next((name for name in names if name not in shapes), ""): shapes.pop(""), **shapes}
    if unknown := [name for name in shapes if name not in names]:
        raise SurgeryError(f"{source}: has no input {unknown[0]!r}; it has {', '.join(names)}")
    inputs, free = {}, {}
    for name in (name for name in names if name in shapes):
        kind = dtype.get(name, "float32") if isinstance(dtype, Mapping) else dtype or "float32"
        inputs[name] = _random([batch, *shapes[name]], kind)
        free[name] = {0: "batch", **{a: d for a, d in enumerate(shapes[name], 1) if isinstance(d, str)}}
    return inputs, free


def _parameters(network: Any) -> list[str]:
    """The names of what the network's ``forward`` takes."""
    if isinstance(network, torch.jit.ScriptModule):
        forward: Any = network.forward
        return [argument.name for argument in forward.schema.arguments[1:]]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(network.forward).parameters.values()
    return [parameter.name for parameter in found if parameter.kind in kinds]


def _random(dims: list[Dim], dtype: str) -> torch.Tensor:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise SurgeryError(f"{dtype!r} is not a type of PyTorch's; write float32 or int64, for example")
    sizes = [d if isinstance(d, int) else _IMAGE if len(dims) == 4 else _OTHER for d in dims]
    if kind.is_floating_point:
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(kind)
    return torch.zeros(sizes, dtype=kind)


def _trace(
    module: torch.nn.Module, source: Path, inputs: dict[str, torch.Tensor], dims: dict[str, dict[int, str]]
) -> torch.export.ExportedProgram:
    free = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in dims.items()}
    # With a batch of one, sizes of one would be taken for constants.
    examples = {
        name: tensor.repeat(2, *[1] * (tensor.dim() - 1)) if 0 in dims[name] else tensor
        for name, tensor in inputs.items()
    }
    try:
        with _quiet():
            return torch.export.export(module, (), kwargs=examples, dynamic_shapes=free, strict=False)
    except Exception as error:  # whatever the network's code does
        if any(0 in axes for axes in dims.values()):
            program = _trace(module, source, inputs, _without_batch(dims))
            _log.warning("%s: its code fixes the size of the batch: it is 1 in the model", source)
            return program
        raise SurgeryError(f"{source}: torch.export cannot trace it ({first_line(error)})") from error


def _export_program(program: torch.export.ExportedProgram, source: Path, dims: dict[str, dict[int, str]]) -> ir.Model:
    set_modes(program.graph_module, dropout=True)
    _check_adaptive(program.graph_module, source)
    try:
        with _quiet():
            made = torch.onnx.export(
                program, (), dynamo=True, optimize=False, opset_version=_OPSET, verbose=False, external_data=False
            )
    except Exception as error:  # an operator without a translation, for one
        raise SurgeryError(f"{source}: torch.onnx cannot export it ({first_line(error)})") from error
    assert made is not None
    frozen = {name for name, tensor in program.named_parameters() if not tensor.requires_grad}
    return clean(made.model, {name for name, _ in program.named_parameters()}, frozen, dims)


def _check_adaptive(module: torch.fx.GraphModule, source: Path) -> None:
    """Refuses what torch.onnx (2.13) exports for the size that the example happens to have, without saying so."""
    for node in module.graph.nodes:
        if node.target not in _ADAPTIVE:
            continue
        sizes = [node.args[1]] if isinstance(node.args[1], int) else list(node.args[1])
        free = [not isinstance(d, int) for d in node.args[0].meta["val"].shape[-len(sizes) :]]
        if any(is_free and size != 1 for is_free, size in zip(free, sizes, strict=True)):
            raise SurgeryError(
                f"{source}: operator {node.name} pools an input of any size to {'x'.join(map(str, sizes))}, for which "
                "ONNX has no operator; give the input's size, such as --shape 3x224x224"
            )


def set_modes(module: torch.fx.GraphModule, dropout: bool) -> None:
    """Sets what differs between training and inference to inference, but for Dropout.

    Args:
        module: The graph of an exported program.
        dropout: Whether Dropout drops: one that drops nothing is not exported. Those of whole channels, of attention
            and between recurrent layers are never exported: ONNX has no such operators.
    """
    for node in module.graph.nodes:
        if node.target in _DROPOUT and node.args[1]:
            node.target = _DROPOUT[0]  # in place, it would be exported as random numbers and comparisons
            node.args = (*node.args[:2], dropout)
        elif node.target in _MODES:
            at, value = _MODES[node.target]
            if len(node.args) > at:
                node.args = (*node.args[:at], value, *node.args[at + 1 :])
    module.recompile()


def _export_script(
    script: torch.jit.ScriptModule, source: Path, inputs: dict[str, torch.Tensor], dims: dict[str, dict[int, str]]
) -> ir.Model:
    frozen = {name for name, tensor in script.named_parameters() if not tensor.requires_grad}
    file = io.BytesIO()
    try:
        # Of a network that it cannot export, it would print the whole graph.
        with _quiet(), mock.patch.object(torch._C, "_jit_onnx_log"):
            torch.onnx.export(
                script,
                tuple(inputs.values()),
                file,  # type: ignore[arg-type]  # it writes to files too
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # what was set here
                do_constant_folding=False,
                opset_version=_OPSET,
                input_names=list(inputs),
                dynamic_axes={name: free for name, free in dims.items() if free},
            )
    except Exception as error:
        raise SurgeryError(f"{source}: torch.onnx cannot export it ({first_line(error)})") from error
    model = ir.from_proto(onnx.load_from_string(file.getvalue()))
    for node in model.graph:  # its names of sizes are wrong: of an image's height, it says that it is the batch
        for value in node.outputs:
            value.shape = value.shape and ir.Shape([d if isinstance(d, int) else None for d in value.shape])
    return clean(model, {name for name, _ in script.named_parameters()}, frozen, dims)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' progress and deprecations to themselves."""
    loggers = quiet("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with loggers, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
