"""torch.export's .pt2 files: read without unpickling anything, or evaluating anything that is not arithmetic.

`torch.export.load` unpickles custom objects, looks operators up as attributes of `torch`, and evaluates the expressions
of symbolic sizes as Python (sympy); so what a file says of these is checked before it is given to it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from converters.pytorch.archive import open_archive
from surgery.errors import SurgeryError

__all__ = ["load_program"]

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims?|higher_order|torchvision)\.(?!from_file)\w+(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|torch\.(sym_\w+|_sym_sqrt|_check\w*)"
)
_FUNCTIONS = frozenset((
    "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Where", "IntTrueDiv",
    "FloatTrueDiv", "TruncToInt", "FloorToInt", "CeilToInt", "RoundToInt", "PowByNatural", "Eq", "Ne", "Lt", "Le",
    "Gt", "Ge", "And", "Or", "Not", "floor", "ceiling", "Identity", "ToFloat", "Add", "Mul", "Pow", "Integer",
    "Float", "Rational", "Symbol",
))  # fmt: skip
_SYMBOL = re.compile(r"[a-z]+\d+|True|False|oo|int_oo")
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.expr_context, ast.keyword,
)  # fmt: skip
_MOST_LETTERS, _MOST_POWERS, _MOST_EXPONENT, _MOST_NUMBER = 1000, 3, 8, 2**63


def load_program(path: Path) -> Any:
    """Returns the `torch.export.ExportedProgram` in `path`.

    Raises:
        SurgeryError: It is damaged, of a PyTorch too different, or has what is not read: pickled objects, operators
            that are not PyTorch's own.
    """
    import torch

    with open_archive(path) as archive:
        _check(path, archive)
    try:
        with _without_pickles(torch):
            program = torch.export.load(str(path))
    except SurgeryError:
        raise
    except Exception as error:  # whatever PyTorch makes of a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(
            f"{path}: PyTorch {torch.__version__} cannot read it ({reason}); save it again with torch.export.save"
        ) from error
    program._guards_code = []  # Python that a file brings; the shapes are checked without
    return program


@contextlib.contextmanager
def _without_pickles(torch: Any) -> Iterator[None]:
    """Lets `torch.load` read nothing but tensors: `torch.export.load` asks for more where that fails."""
    load = torch.load

    def only_tensors(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "weights_only": True})

    with mock.patch.object(torch, "load", only_tensors):
        yield


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses what `torch.export.load` would execute."""
    for name in archive.namelist():
        short = name.rpartition("/")[2]
        if short.startswith(("custom_obj", "opaque_obj")) or "aotinductor" in name or "executorch" in name:
            raise SurgeryError(f"{path}: holds {short}, a Python object or compiled code, which is never loaded")
        if not short.endswith(".json"):
            continue
        try:
            data = json.loads(archive.read(name))
        except (ValueError, RecursionError, zipfile.BadZipFile, OSError) as error:
            raise SurgeryError(f"{path}: is truncated or damaged ({name}: {error}); copy it again") from error
        _check_json(path, data)


def _check_json(path: Path, data: Any) -> None:
    todo = [data]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        if not isinstance(item, dict):
            continue
        todo += item.values()
        path_name = item.get("path_name", "")
        if not isinstance(path_name, str) or path_name.startswith(("custom_obj", "opaque_obj")):
            raise SurgeryError(f"{path}: holds {path_name}, a Python object, which is never loaded")
        if "target" in item and not _OPERATOR.fullmatch(str(item["target"])):
            raise SurgeryError(f"{path}: uses {item['target']!r}, which is none of PyTorch's own operators")
        expressions = [item["expr_str"]] if "expr_str" in item else []
        ranges = item.get("range_constraints", {})
        for expression in [*expressions, *(ranges if isinstance(ranges, dict) else [])]:
            if not _is_arithmetic(expression):
                raise SurgeryError(f"{path}: a size is said to be {expression!r}, which is not arithmetic")


def _is_arithmetic(text: Any) -> bool:
    """Whether `text` is an expression of sizes: numbers, symbols such as s77, arithmetic, PyTorch's own functions."""
    if not isinstance(text, str) or len(text) > _MOST_LETTERS:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    symbols = [node for node in nodes if isinstance(node, ast.Call) and _function(node) == "Symbol"]
    names = [node.args[0] for node in symbols if node.args]
    powers = sum(isinstance(node, ast.Pow) or _function(node) in ("Pow", "PowByNatural") for node in nodes)
    return powers <= _MOST_POWERS and all(_is_harmless(node, node in names) for node in nodes)


def _function(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_harmless(node: ast.AST, is_symbols_name: bool) -> bool:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return is_symbols_name and bool(_SYMBOL.fullmatch(node.value))
        return isinstance(node.value, bool | int | float) and abs(node.value) <= _MOST_NUMBER
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id)) or node.id in _FUNCTIONS
    if isinstance(node, ast.Call):
        exponent = node.args[1] if _function(node) in ("Pow", "PowByNatural") and len(node.args) == 2 else None
        known = _function(node) in _FUNCTIONS and (not node.keywords or _function(node) == "Symbol")
        return known and (exponent is None or _is_small(exponent))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node.right)
    return isinstance(node, _ARITHMETIC)


def _is_small(exponent: ast.AST) -> bool:
    """Whether `exponent` is a small whole number; sympy also writes Integer(2)."""
    if isinstance(exponent, ast.Call) and _function(exponent) == "Integer" and len(exponent.args) == 1:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    value = exponent.value if isinstance(exponent, ast.Constant) else None
    return isinstance(value, int) and value <= _MOST_EXPONENT
