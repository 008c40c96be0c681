"""The public zoos: a card for each network says where it is, what it needs, and how to convert it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from converters.card import read_card
from converters.download import ALGORITHMS, check_name, check_url, download
from surgery.errors import SurgeryError, nearest
from surgery.marks import Preprocessing

__all__ = ["ZooCard", "ZooFile", "cards", "fetch", "find_card", "folders"]

FileProgress = Callable[[str, int, "int | None"], None]
"""Is told a file's name, how many bytes are there, and of how many."""
_Name = Annotated[str, AfterValidator(check_name)]
_Url = Annotated[str, AfterValidator(check_url)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ZooFile(_Part):
    """A file to download.

    Attributes:
        name: Of the file.
        url: Where it is.
        sha256: As published; its first digits are enough.
        sha1: As published.
        md5: As published.
        size: In bytes, as published.
    """

    name: _Name
    url: _Url
    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def digests(self) -> dict[str, str]:
        """The published digests by algorithm."""
        return {name: digest for name in ALGORITHMS if (digest := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, digest in self.digests.items():
            least = 8 if name == "sha256" else ALGORITHMS[name]
            if not least <= len(digest) <= ALGORITHMS[name] or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{digest!r} is not a {name}")
        return self


class Input(_Part):
    """The shape of the input, without the batch, in the layout of the framework."""

    shape: tuple[int, ...]
    layout: str = "NCHW"


class Labels(_Part):
    """How many classes there are, and where their names are: in one of the files, or in words."""

    classes: int
    file: _Name | None = None
    where: str | None = None


class Accuracy(_Part):
    """As published, on which data."""

    data: str
    top1: float | None = None
    top5: float | None = None


class ZooCard(_Part):
    """A network of a public zoo.

    Attributes:
        name: That of the card.
        title: That of the network.
        framework: What its files are for.
        source: The page that publishes it.
        licence: As published.
        files: What to download, by role: ``definition``, ``weights``, ``labels``, ``mean``.
        definition: The name of the definition where it is not downloaded but made, see `prepare`.
        input: Shape and layout.
        preprocessing: How images become the input.
        labels: Of the classes.
        accuracy: As published.
        needs: What to install.
        prepare: Commands that come before converting.
        convert: The command. ``{folder}`` is where the files are.
        notes: What else there is to know.
    """

    name: _Name
    title: str
    framework: str
    source: _Url
    licence: str | None = None
    files: dict[str, ZooFile]
    definition: _Name | None = None
    input: Input | None = None
    preprocessing: Preprocessing | None = None
    labels: Labels | None = None
    accuracy: Accuracy | None = None
    needs: str | None = None
    prepare: list[str] = []
    convert: str
    notes: str | None = None

    def commands(self, folder: Path) -> list[str]:
        """What to type, where the files are in `folder`."""
        return [command.replace("{folder}", shlex.quote(str(folder))) for command in [*self.prepare, self.convert]]


def folders() -> list[Path]:
    """Where cards are: in a checkout, or in an installed package."""
    import surgery

    package = Path(surgery.__file__).resolve().parent
    return [place / "models" / "zoo" for place in (package.parent, package)]


def cards() -> list[ZooCard]:
    """All cards, by name.

    Raises:
        SurgeryError: One is not valid, or none is installed.
    """
    folder = next((place for place in folders() if place.is_dir()), None)
    if folder is None:
        raise SurgeryError("the cards of the zoo, models/zoo, are not part of this installation")
    return [_read(path) for path in sorted(folder.glob("*.yaml"))]


def find_card(name: str) -> ZooCard:
    """Returns the card `name`.

    Raises:
        SurgeryError: There is none; the message names the nearest.
    """
    known = {card.name: card for card in cards()}
    if name not in known:
        raise SurgeryError(f"the zoo has no {name!r}{nearest(name, known)}; `surgery zoo list` shows all")
    return known[name]


def _read(path: Path) -> ZooCard:
    try:
        card = ZooCard.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SurgeryError(f"{path}: {where or 'the file'}: {first['msg']}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SurgeryError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if card.name != path.stem:
        raise SurgeryError(f"{path}: name: is {card.name!r} and must be that of the file")
    return card


def fetch(card: ZooCard, folder: Path, progress: FileProgress | None = None) -> dict[str, bool]:
    """Downloads the files of `card` to `folder`, and writes the card.yaml with which `convert` takes them.

    Returns:
        Whether each file was downloaded, by name; else it was there.

    Raises:
        SurgeryError: A file cannot be had, or is not what was published, or the folder has another network's card.
    """
    other = read_card(folder) if folder.is_dir() else None
    if other is not None and other.name != card.title:
        raise SurgeryError(f"{folder}: has the card.yaml of {other.name}; name another folder with -o")
    found = {}
    for file in card.files.values():
        told = None if progress is None else _told(progress, file.name)
        try:
            found[file.name] = download(file.url, folder / file.name, file.digests, size=file.size, progress=told)
        except OSError as error:
            raise SurgeryError(f"{folder / file.name}: cannot be written ({error.strerror or error})") from error
    _write_card(card, folder)
    return found


def _told(progress: FileProgress, name: str) -> Callable[[int, int | None], None]:
    return lambda done, total: progress(name, done, total)


def _write_card(card: ZooCard, folder: Path) -> None:
    """Writes what `converters.card` reads: the files that belong together, labels and preprocessing."""
    from converters.finish import read_labels
    from surgery.io import replacing

    files = {role: file.name for role, file in card.files.items() if role in ("definition", "weights")}
    data: dict[str, Any] = {"name": card.title, "source": card.source}
    data["files"] = files | ({"definition": card.definition} if card.definition else {})
    if card.preprocessing is not None:
        data["preprocessing"] = card.model_dump(mode="json")["preprocessing"]
    if card.labels is not None and card.labels.file is not None:
        data["labels"] = read_labels(folder / card.labels.file)
    with replacing(folder / "card.yaml") as temporary:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
        temporary.write_text(text, encoding="utf-8")
