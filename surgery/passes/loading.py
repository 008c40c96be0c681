"""Objects of other packages, by name."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from surgery.errors import SurgeryError, nearest

__all__ = ["load_object"]


def load_object(name: str) -> Any:
    """Imports ``package.module:object``, also from the current folder.

    Raises:
        SurgeryError: There is no such module or object, or importing it fails.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does
        raise SurgeryError(f"{name}: module {module_name!r} cannot be imported ({error})") from error
    finally:
        sys.path.remove(here)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise SurgeryError(f"{name}: no such name in {module_name}{nearest(attribute, dir(module))}") from error
