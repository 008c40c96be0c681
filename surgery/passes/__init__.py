"""Passes: named transformations of a model's graph, one file each."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from surgery.errors import nearest
from surgery.passes.base import Change, Pass, Result, pass_dataclass, registry

__all__ = ["Change", "Pass", "Result", "pass_dataclass", "registry"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:  # for type checkers: passes are not written out here
    raise AttributeError(f"surgery has no pass {name!r}{nearest(name, __all__)}")


for _class in registry.values():
    globals()[_class.__name__] = _class
    __all__.append(_class.__name__)
