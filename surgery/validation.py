"""What pydantic finds wrong with a user's settings, in one line that names the key and the nearest valid one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from surgery.errors import nearest

__all__ = ["explain"]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def explain(error: ValidationError, data: Any, schema: dict[str, Any]) -> tuple[tuple[str | int, ...], str]:
    """Says what is wrong first.

    Args:
        error: What pydantic says.
        data: What it was given.
        schema: The JSON Schema of what it wanted.

    Returns:
        The place in `data`, and the message.
    """
    problems = error.errors(include_url=False)
    problem = ([p for p in problems if p["type"] in _UNKNOWN] or problems)[0]
    place = _inside(data, problem["loc"])
    text_wanted = any(p["type"] == "string_type" and _inside(data, p["loc"]) == place for p in problems)
    return place, _message(problem, schema) + (_quotes(problem.get("input")) if text_wanted else "")


def _quotes(given: Any) -> str:
    """What to do about text that YAML reads as something else."""
    if isinstance(given, bool):
        return "; write it in quotes: without them YAML reads yes, no, on and off as true and false"
    return "" if given is None or isinstance(given, Mapping | list) else "; write it in quotes"


def _inside(data: Any, place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of pydantic's place that is a key of `data`; the rest are names of alternatives."""
    result: list[str | int] = []
    for part in place:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
            result.append(part)
    return tuple(result)


def _message(problem: Any, schema: dict[str, Any]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind in _UNKNOWN:
        known = _keys(schema, schema, problem["loc"][:-1])
        return f"unknown key{nearest(problem['loc'][-1], known)}" + (f"; there are {', '.join(known)}" if known else "")
    if kind in ("missing", "missing_argument"):
        return f"key {problem['loc'][-1]!r} is missing"
    if kind in ("literal_error", "union_tag_invalid"):
        context = problem["ctx"]
        expected, given = str(context.get("expected", context.get("expected_tags"))), context.get("tag", given)
        return f"{given!r} is not one of {expected}" + nearest(str(given), re.findall(r"'([^']*)'", expected))
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if kind in ("value_error", "selector") else f"{message}, not {given!r}"


def _keys(schema: dict[str, Any], root: dict[str, Any], place: tuple[str | int, ...]) -> list[str]:
    """The keys that a JSON Schema knows at a place; parts of the place that are no keys name alternatives."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    mapping = schema.get("discriminator", {}).get("mapping", {})
    properties = schema.get("properties", {})
    if not place:
        return list(dict.fromkeys([*properties, *(k for a in alternatives for k in _keys(a, root, ()))]))
    first, rest = place[0], place[1:]
    if first in mapping:
        return _keys({"$ref": mapping[first]}, root, rest)
    if first in properties:
        return _keys(properties[first], root, rest)
    if isinstance(first, int) and "items" in schema:
        return _keys(schema["items"], root, rest)
    if alternatives:
        return list(dict.fromkeys(k for a in alternatives for k in _keys(a, root, place)))
    return _keys(schema, root, rest)
