"""YAML read safely and with line numbers, so that an error can say where."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import yaml

from surgery.errors import SurgeryError

__all__ = ["Document", "Key", "parse_yaml", "read_yaml"]

Key = tuple[str | int, ...]

_MAX_BYTES = 2**17  # the parser reads some 100 kB a second
_MAX_NODES = 20_000  # aliases written out
_MAX_DEPTH = 50
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
# YAML 1.1 takes 1e-3 for text; everyone who writes it means the number.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


@dataclasses.dataclass
class Document:
    """The contents of a YAML file.

    Attributes:
        source: The file's name, for messages.
        data: The contents as Python data.
        lines: The line that each key or item is on, from 1.
    """

    source: str
    data: Any
    lines: dict[Key, int] = dataclasses.field(default_factory=dict)

    def where(self, key: Key) -> str:
        """The file and the line of `key`, or of what is nearest around it."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return f"{self.source}, line {self.lines[key[:end]]}"
        return self.source


def read_yaml(path: str | os.PathLike[str]) -> Document:
    """Reads a YAML file.

    Raises:
        SurgeryError: It cannot be read, is too large, or is not one YAML document of plain data with unique keys.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SurgeryError(f"{path}: is too large for a file of settings ({path.stat().st_size:,} bytes)")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise SurgeryError(f"{path}: is not a text file in UTF-8 ({error})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parses YAML; `source` is its name in messages.

    Raises:
        SurgeryError: It is not one YAML document of plain data with unique keys.
    """
    document = Document(source, None)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _Builder(loader, document).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}, line {mark.line + 1}" if mark is not None else source
        raise SurgeryError(f"{where}: is not valid YAML ({error.problem or error.context})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SurgeryError(f"{source}: is not valid YAML ({str(error).splitlines()[0]})") from error
    except RecursionError as error:
        raise SurgeryError(f"{source}: is nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()
    return document


class _Builder:
    """Turns YAML's nodes into Python data and notes their lines."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self._loader, self._document, self._count = loader, document, 0

    def build(self, node: Any, key: Key) -> Any:
        source, line = self._document.source, node.start_mark.line + 1
        self._count += 1
        if self._count > _MAX_NODES or len(key) > _MAX_DEPTH:
            raise SurgeryError(
                f"{source}, line {line}: is too much, or too deeply nested, with its aliases written out"
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            raise SurgeryError(f"{source}, line {line}: is not valid YAML here (tag {node.tag})")
        self._document.lines.setdefault(key, line)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*key, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if node.tag == "tag:yaml.org,2002:str" and node.style is None and _EXPONENT.fullmatch(node.value):
            return float(node.value)
        return self._loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = f"{self._document.source}, line {name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag == "tag:yaml.org,2002:merge":
                raise SurgeryError(f"{line}: a key must be a plain word")
            name = name_node.value
            if name in result:
                raise SurgeryError(f"{line}: key {name!r} is there twice")
            inside = (*key, name)
            self._document.lines[inside] = name_node.start_mark.line + 1
            result[name] = self.build(value_node, inside)
        return result
