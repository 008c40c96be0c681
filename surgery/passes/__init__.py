"""Passes: named transformations of a model's graph, one file each."""

from __future__ import annotations

import importlib
import pkgutil

from surgery.passes.base import Change, Pass, Result, registry

__all__ = ["Change", "Pass", "Result", "registry"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

for _class in registry.values():
    globals()[_class.__name__] = _class
    __all__.append(_class.__name__)
