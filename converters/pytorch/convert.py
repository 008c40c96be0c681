"""Conversion of PyTorch networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from converters.options import Shape
from converters.registry import converter, load_extra
from surgery.errors import SurgeryError
from surgery.proto import first_line

__all__ = ["convert_pytorch", "open_network"]

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ENDINGS = (".pt2", ".pt", ".pth", ".safetensors")


def _is_pytorch(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_ENDINGS)


def _networks(folder: Path) -> list[Path]:
    """The files of `folder` that hold a network: not those with weights only."""
    from converters.pytorch.archive import kind_of

    files = sorted(path for path in folder.iterdir() if _is_pytorch(path))
    return [path for path in files if kind_of(path) in ("program", "torchscript")]


@converter("PyTorch", recognizes=_is_pytorch, networks=_networks, names=lambda text: _NAME.fullmatch(text) is not None)
def convert_pytorch(
    source: Path,
    *,
    weights: Path | None = None,
    shape: Shape | None = None,
    dtype: str | Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    batch: int | None = None,
) -> ir.Model:
    """Converts a PyTorch network to ONNX (operator set 18), as it infers, with its Dropout.

    An operator that does a module's work has the module's path for a name (``layer1.0.conv1``), one that a module's own
    code does has it after the path (``layer1.0/add``). Parameters keep their names in the state_dict. What has
    ``requires_grad`` False is frozen. The first dimension of each input is the batch and may have any size, unless the
    network's code fixes it or a ``.pt2`` was exported otherwise.

    Args:
        source: A ``.pt2`` of `torch.export.save`, a ``.pt`` of `torch.jit.save`, or ``package.module:factory``: code of
            yours, which is imported and called.
        weights: For a factory: the state_dict, ``.pt``, ``.pth`` or ``.safetensors``. Else they are the factory's.
        shape: The input's shape without the batch, ``3x224x224``, or ``3x?x?`` where height and width may be anything;
            by the names of the parameters of ``forward`` where there are several: ``image=3x224x224,info=3``. A
            ``.pt2`` knows its own.
        dtype: The input's type, ``int64`` for indices, or the types by name. By default float32.
        arguments: For a factory: what to call it with.
        batch: Fixes the size of the batch.

    Raises:
        SurgeryError: PyTorch is missing, a file is damaged or holds Python objects, or the network cannot be exported.
    """
    load_extra("torch", "pytorch", "converting from PyTorch")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise SurgeryError(f"batch is {batch!r} and must be a whole number, 1 or more")
    from converters.pytorch.export import export

    network = open_network(source, weights, arguments, dropout=True)
    return export(network, source, shape, dtype, batch)


def open_network(source: Path, weights: Path | None, arguments: Mapping[str, Any] | None, *, dropout: bool) -> Any:
    """Returns the module, script module or exported program that `source` names; `dropout` is for script modules.

    Raises:
        SurgeryError: It cannot be read, or needs weights or arguments that it is not given, or the other way round.
    """
    if not source.exists():
        return _make(str(source), weights, arguments)
    for given, name in ((weights, "weights"), (arguments, "arguments")):
        if given is not None:
            raise SurgeryError(f"{source}: takes no {name}; those are for package.module:factory")
    from converters.pytorch.archive import kind_of
    from converters.pytorch.program import load_program
    from converters.pytorch.script import load_script

    kind = kind_of(source)
    if kind == "program":
        return load_program(source)
    if kind == "torchscript":
        return load_script(source, dropout=dropout)
    if kind == "pickle" or source.name.endswith(".safetensors"):
        raise SurgeryError(
            f"{source}: holds weights, or a pickled module, which is never loaded; name the code that makes the "
            f"network: surgery convert package.module:factory --weights {source} --shape 3x224x224"
        )
    raise SurgeryError(f"{source}: is not a file of PyTorch's, or is truncated")


def _make(name: str, weights: Path | None, arguments: Mapping[str, Any] | None) -> Any:
    """The module that ``package.module:factory`` returns, or is, with its weights."""
    import torch

    from converters.options import custom_function
    from converters.pytorch.weights import load_weights

    factory = custom_function(name, "network")
    assert factory is not None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise SurgeryError(f"arguments are {arguments!r} and must be by name: arguments={{num_classes: 10}}")
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise SurgeryError(f"{name}: is a network already and takes no arguments")
        module: Any = factory
    else:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # weights that no file gives are the same each time
                module = factory(**arguments or {})
        except Exception as error:  # whatever the user's code does
            raise SurgeryError(f"{name}: calling it fails ({first_line(error)})") from error
    if not isinstance(module, torch.nn.Module):
        raise SurgeryError(f"{name}: returns a {type(module).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(module, weights)
    return module.eval()
