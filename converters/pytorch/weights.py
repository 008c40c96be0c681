"""State dicts, from PyTorch's own files and from .safetensors; nothing in them is executed."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.files import open_buffer
from converters.pytorch.archive import kind_of, open_archive
from surgery.errors import SurgeryError

__all__ = ["load_weights", "read_state"]

_MOST_HEADER = 100_000_000  # bytes, as in the format's own reader
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # what checkpoints call the state_dict
_SHOWN = 5
_DENSE = re.compile(r"\.(norm|conv)\.([12])\.")  # how torchvision's files of DenseNets name what is norm1 in its code
# https://github.com/huggingface/safetensors#format
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def load_weights(module: Any, path: Path) -> None:
    """Loads the state dict in `path` into `module`, whole.

    It may be an entry of a checkpoint, as ``state_dict``, and its names may begin with ``module.``.

    Raises:
        SurgeryError: It cannot be read, or is not that of `module`: names or shapes differ.
    """
    state = read_state(path)
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = _renamed(state, {name: name.removeprefix(prefix) for name in state})
    own = module.state_dict()
    state = _renamed(state, {n: d for n in state if n not in own and (d := _DENSE.sub(r".\1\2.", n)) in own})
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        reason = lines[0] if lines else str(error).splitlines()[0]
        raise SurgeryError(
            f"{path}: {reason}: it belongs to another network, or to one with other arguments"
        ) from error
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"has {_some(result.unexpected_keys)}, which the network does not" if result.unexpected_keys else ""
        raise SurgeryError(f"{path}: {' and '.join(filter(None, (lacks, has)))}: it belongs to another network")


def _renamed(state: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`state` with other names; what it says of its modules' versions, on which loading old ones depends, stays."""
    new = OrderedDict((names.get(name, name), tensor) for name, tensor in state.items())
    new._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return new


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def read_state(path: Path) -> dict[str, Any]:
    """Returns the tensors in `path` by name.

    Raises:
        SurgeryError: It holds something else, or is damaged.
    """
    if path.name.endswith(".safetensors"):
        return _read_safetensors(path)
    import torch

    kind = kind_of(path)
    if kind in ("program", "torchscript"):
        raise SurgeryError(f"{path}: is a whole network; convert it without another: surgery convert {path}")
    if kind == "other":
        raise SurgeryError(f"{path}: is not a file of PyTorch's, or is truncated")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        open_archive(path).close()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise SurgeryError(
            f"{path}: holds Python objects, such as a whole module, which are never loaded, because they may do "
            "anything: load it where you trust it and save its state_dict: torch.save(network.state_dict(), …)"
        ) from error
    except Exception as error:  # whatever PyTorch makes of a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(f"{path}: PyTorch {torch.__version__} cannot read it ({reason}); copy it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    ):
        raise SurgeryError(f"{path}: holds no state_dict (tensors by name), but {_described(found)}")
    return found  # type: ignore[return-value]


def _described(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"the entries {_some([str(key) for key in found])}"
    return f"a {type(found).__name__}"


def _read_safetensors(path: Path) -> dict[str, Any]:
    import torch

    size = path.stat().st_size
    data = open_buffer(path) if size else b""
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > min(_MOST_HEADER, size - 8):
        raise SurgeryError(f"{path}: is truncated, or not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            shape, dtype = [int(d) for d in entry["shape"]], getattr(torch, _TYPES[entry["dtype"]])
            count = math.prod(shape)
            if min(shape, default=0) < 0 or not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"{name} lies outside of the file")
            if count * dtype.itemsize != end - begin:
                raise ValueError(f"{name} of shape {shape} has {end - begin} bytes")
            flat = (
                torch.frombuffer(bytearray(data[8 + length + begin : 8 + length + end]), dtype=dtype)
                if count
                else torch.empty(0, dtype=dtype)
            )
            tensors[str(name)] = flat.reshape(shape)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SurgeryError(f"{path}: is not a readable safetensors file ({type(error).__name__}: {error})") from error
    return tensors
