"""Model cards: the card.yaml next to a network's files says what the files themselves do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

__all__ = ["Card", "read_card"]


class Card(BaseModel):
    """What converting takes from a card; it may say more (source, licence, accuracy, …).

    Attributes:
        name: The network's.
        files: Names of files in the card's folder: ``definition`` is what to convert, ``weights`` its weights.
        labels: Class names of the output.
        preprocessing: How images become the input.
    """

    model_config = ConfigDict(extra="allow")
    name: str
    files: dict[str, str] = {}
    labels: list[str] | None = None
    preprocessing: Preprocessing | None = None

    def find(self, folder: Path) -> tuple[Path | None, Path | None]:
        """The definition and the weights that the card names, where they are files in `folder`.

        Weights that come without a definition have one in them, and are what to convert.
        """
        named = (folder / self.files[key] if key in self.files else None for key in ("definition", "weights"))
        definition, weights = (path if path is not None and path.is_file() else None for path in named)
        return (definition, weights) if definition is not None else (weights, None)


def read_card(source: Path) -> Card | None:
    """Returns the card of `source`, a folder with a card.yaml or a file that the card in its folder names, if any.

    Raises:
        SurgeryError: The card is not valid; the message names file and key.
    """
    path = (source if source.is_dir() else source.parent) / "card.yaml"
    if not path.is_file():
        return None
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        card = TypeAdapter(Card).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SurgeryError(f"{path}: {where}: {first['msg']}; see models/lenet_mnist/card.yaml for a card") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SurgeryError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if source.is_file() and source.name not in card.files.values():
        return None
    return card
