"""surgery zoo"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.app import Json, Quiet, app, print_json, say

if TYPE_CHECKING:
    from rich.progress import TaskID

zoo = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Find, describe and download pretrained networks of the public zoos.",
)
app.add_typer(zoo, name="zoo")
Name = Annotated[str, typer.Argument(help="A network of the zoo, as `surgery zoo list` names it.", show_default=False)]


@zoo.command("list")
def list_(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]…", help="Only those that have all of these words.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the networks, or those of a framework or family.

    Example: `surgery zoo list pytorch resnet`
    """
    from converters.zoo import cards
    from surgery.errors import SurgeryError

    wanted = [word.lower() for word in words or []]
    found = [c for c in cards() if all(w in f"{c.name} {c.title} {c.framework}".lower() for w in wanted)]
    if as_json:
        print_json([{"name": c.name, "title": c.title, "framework": c.framework} for c in found])
        return
    if not found:
        raise SurgeryError(f"the zoo has nothing with the words {' '.join(wanted)}; `surgery zoo list` shows all")
    from rich.table import Table

    table = Table("framework", "network", "input", "top-1")
    table.add_column("name", no_wrap=True)
    for card in found:
        shape = "×".join(map(str, card.input.shape)) if card.input is not None else ""
        top1 = f"{card.accuracy.top1:.1%}" if card.accuracy is not None and card.accuracy.top1 is not None else ""
        table.add_row(card.framework, card.title, shape, top1, card.name)
    say(table)


@zoo.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show a network's card: files, preprocessing, labels, and how to convert it.

    Example: `surgery zoo show torchvision_resnet18`
    """
    import yaml

    from converters.zoo import find_card

    data = find_card(name).model_dump(mode="json", exclude_unset=True)
    if as_json:
        print_json(data)
    else:
        say(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110).rstrip())


@zoo.command()
def fetch(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder for its files. [default: one of its name, here]")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a network's files, verify them, and say how to convert them.

    A download that broke goes on where it stopped when the command is run again.

    Example: `surgery zoo fetch caffe_alexnet -o alexnet`
    """
    from converters.zoo import fetch as fetch_files
    from converters.zoo import find_card

    card = find_card(name)
    folder = output or Path(name)
    with _Bars(quiet or as_json) as progress:
        found = fetch_files(card, folder, progress)
    verified = {file.name: next(iter(file.digests), None) for file in card.files.values()}
    if as_json:
        files = [{"name": n, "downloaded": new, "verified": verified[n]} for n, new in found.items()]
        print_json({"name": name, "folder": str(folder), "files": files, "commands": card.commands(folder)})
        return
    for file, new in found.items():
        how = f"{verified[file]} verified" if verified[file] else "no checksum is published"
        say(f"{folder / file}: {'downloaded' if new else 'was there'}, {how}", quiet)
    if card.needs is not None:
        say(f"It needs: {card.needs}", quiet)
    for command in card.commands(folder):
        say(f"$ {command}", quiet)


class _Bars:
    """A bar for each file, on a terminal."""

    def __init__(self, quiet: bool) -> None:
        import sys

        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Any:
        self._bars.start()

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=done, total=total)

        return progress

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()
