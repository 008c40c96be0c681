"""Protocol buffers' text format without a schema: for the fields of layers that only a fork knows.

https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
from typing import Any

from surgery.errors import SurgeryError

__all__ = ["Fields", "parse_fields", "unknown_field"]

Fields = dict[str, Any]
"""Fields by name: numbers, truth values, strings (enumerations too), `Fields`; a list where one is there repeatedly."""

_MOST_DEPTH = 50
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<word>[-+\w.]+)|(?P<sign>[{}<>\[\]:,;])"""
)


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise SurgeryError(f"line {line}: unexpected {text[position]!r}")
        if match.lastgroup:
            tokens.append(match.group())
        position = match.end()
    return tokens


def parse_fields(text: str) -> Fields:
    """Parses a message in text format.

    Raises:
        SurgeryError: The text is not in that format.
    """
    tokens = [*_tokens(text), "}"]
    fields, end = _message(tokens, 0, "}", 0)
    if end != len(tokens):
        raise SurgeryError("a closing bracket too many")
    return fields


def unknown_field(fields: Fields, descriptor: Any, within: str = "") -> str | None:
    """Returns the path of a field that the message of `descriptor` does not have, as ``input_param.shape.size``."""
    for name, value in fields.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:
            return within + name
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and (found := unknown_field(each, field.message_type, f"{within}{name}.")):
                return found
    return None


def _message(tokens: list[str], at: int, closing: str, depth: int) -> tuple[Fields, int]:
    if depth > _MOST_DEPTH:
        raise SurgeryError(f"brackets nested more than {_MOST_DEPTH} deep")
    fields: Fields = {}
    while True:
        if at >= len(tokens):
            raise SurgeryError("a closing bracket is missing")
        name = tokens[at]
        at += 1
        if name == closing:
            return fields, at
        if name in ",;":
            continue
        values, at = _values(tokens, at, depth)
        for value in values:
            if name not in fields:
                fields[name] = value
            elif isinstance(fields[name], list):
                fields[name].append(value)
            else:
                fields[name] = [fields[name], value]


def _values(tokens: list[str], at: int, depth: int) -> tuple[list[Any], int]:
    if tokens[at : at + 1] == [":"]:
        at += 1
    if tokens[at : at + 1] != ["["]:
        value, at = _value(tokens, at, depth)
        return [value], at
    values, at = [], at + 1
    while tokens[at : at + 1] != ["]"]:
        if tokens[at : at + 1] == [","]:
            at += 1
        value, at = _value(tokens, at, depth)
        values.append(value)
    return values, at + 1


def _value(tokens: list[str], at: int, depth: int) -> tuple[Any, int]:
    token = tokens[at] if at < len(tokens) else "}"
    if token in "{<":
        return _message(tokens, at + 1, "}" if token == "{" else ">", depth + 1)
    if token[0] in "\"'":
        parts = []
        while at < len(tokens) and tokens[at][0] in "\"'":
            parts.append(re.sub(r"\\(.)", r"\1", tokens[at][1:-1]))
            at += 1
        return "".join(parts), at
    if len(token) == 1 and not token.isalnum():
        raise SurgeryError(f"a value is missing before {token!r}")
    if token in ("true", "false"):
        return token == "true", at + 1
    for kind in (lambda t: int(t, 0), float):
        try:
            return kind(token), at + 1
        except ValueError:
            pass
    return token, at + 1
