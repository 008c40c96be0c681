"""TorchScript files.

A TorchScript file is a program in a language of its own, which can compute but not reach files or other Python.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from converters.pytorch.archive import open_archive
from surgery.errors import SurgeryError

__all__ = ["load_script"]

# What tracing writes for a Dropout that does not drop: torch.dropout(input, 0.5, False)
_IDLE = re.compile(r"(torch\.dropout_?\((?:[^()]|\([^()]*\))*, [\d.e-]+, )False\)")


def load_script(path: Path, *, dropout: bool) -> Any:
    """Returns the `torch.jit.ScriptModule` in `path`, for inference.

    Args:
        path: The file.
        dropout: Let its Dropout drop, so that it is exported.

    Raises:
        SurgeryError: It is damaged.
    """
    import torch

    with open_archive(path) as archive:
        file = _with_dropout(path, archive) if dropout else None
    try:
        script = torch.jit.load(file or str(path), map_location="cpu").eval()
    except Exception as error:  # whatever PyTorch makes of a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(f"{path}: PyTorch {torch.__version__} cannot read it ({reason}); save it again") from error
    for module in script.modules():
        if dropout and getattr(module, "original_name", "") == "Dropout":
            module.train()
    return script


def _with_dropout(path: Path, archive: zipfile.ZipFile) -> io.BytesIO | None:
    """The file with every Dropout of a traced network at work; None where there is none."""
    try:
        code = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
        changed = {name: _IDLE.sub(r"\1True)", text.decode()).encode() for name, text in code.items()}
        if changed == code:
            return None
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as copy:
            for name in archive.namelist():
                copy.writestr(name, changed.get(name) or archive.read(name))
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, OSError, EOFError) as error:
        raise SurgeryError(f"{path}: is truncated or damaged ({error}); copy it again") from error
    file.seek(0)
    return file
