"""Conversion of Torch7 networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from converters.options import Shape, custom_function, input_shapes
from converters.registry import converter
from surgery.errors import SurgeryError, nearest

if TYPE_CHECKING:
    from converters.torch7.objects import TorchObject

__all__ = ["convert_torch7"]

_SHOWN = 8  # names in a message


def _is_torch7(path: Path) -> bool:
    from converters.torch7.read import is_torch7

    return is_torch7(path)


@converter("Torch7", recognizes=_is_torch7)
def convert_torch7(
    source: Path,
    *,
    shape: Shape | None = None,
    batch: int | None = None,
    key: str | None = None,
    custom: str | Callable[..., Any] | None = None,
) -> ir.Model:
    """Converts a network that Lua Torch saved (``torch.save``), of the packages nn, cudnn, inn and nngraph, to ONNX.

    The network is converted as it computes behind ``evaluate()``, for batches: dimensions are Torch's with the batch's
    in front. Dropout and BatchNormalization with its statistics stay. A layer has the name that the file gives it, as
    loadcaffe does, else its place in the network, counted from 1 as in Lua, and its type: ``1.SpatialConvolution``,
    ``4.2.Linear``. Its parameters are ``<layer>.weight``, ``.bias``, ``.scale``, ``.mean``, ``.var``, ``.slope``;
    modules that share a tensor share the parameter. Inputs are ``input``, or ``input1``, …; the outputs likewise.

    Args:
        source: The ``.t7`` file. Its functions are skipped, not run.
        shape: The input's shape without the batch, which the file does not say: ``3x224x224``, or ``3x?x?``. Needed
            where a module must know sizes. By input name where there are several: ``input1=3x224x224,input2=10``.
        batch: Fixes the size of the batch.
        key: Where the file has a table: the entry with the network. Not needed where only one is a network.
        custom: Converts modules of types that are not known: ``module:function`` or a function, which is given a
            `converters.torch7.context.Context` and returns the module's output.

    Raises:
        SurgeryError: The file is damaged or something else, a module unknown, or what it reads does not fit.
    """
    from converters.torch7.build import Builder
    from converters.torch7.read import read

    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise SurgeryError(f"batch is {batch!r} and must be a whole number, 1 or more")
    network = _network(source, read(source), key)
    numbers = source.stat().st_size  # no number takes less than a byte
    return Builder(source, network, input_shapes(shape), batch, custom_function(custom), numbers).build()


def _network(source: Path, value: Any, key: str | None) -> TorchObject:
    """The network in the file: its value, or the entry of its table that is one."""
    from converters.torch7.context import PACKAGES
    from converters.torch7.objects import Table, TorchObject, describe

    def is_network(value: Any) -> bool:
        return isinstance(value, TorchObject) and (value.type.startswith(tuple(f"{p}." for p in PACKAGES)))

    if not isinstance(value, Table):
        if not isinstance(value, TorchObject):
            raise SurgeryError(f"{source}: holds {describe(value)}, not a network")
        if key is not None:
            raise SurgeryError(f"{source}: has no entry {key!r}: it is a network, not a table")
        return value
    entries = {str(name): each for name, each in value.entries.items() if isinstance(name, str | int)}
    names = [name for name, each in entries.items() if is_network(each)]
    shown = ", ".join(entry.encode("unicode_escape").decode()[:40] for entry in list(entries)[:_SHOWN])
    if key is not None:
        found = entries.get(str(key))
        if not isinstance(found, TorchObject):
            raise SurgeryError(
                f"{source}: its table has no network {key!r}{nearest(str(key), names) or f'; it has {shown}'}"
            )
        return found
    if len(names) != 1:
        what = f"several networks; say which with --option key={names[0]}" if names else "no network"
        raise SurgeryError(f"{source}: its table has {what}; it has {shown}")
    network = entries[names[0]]
    assert isinstance(network, TorchObject)
    return network
