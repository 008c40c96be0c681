"""surgery apply"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery.cli.app import Json, Overrides, Quiet, app, print_json, say


@app.command()
def apply(
    recipe: Annotated[
        Path, typer.Argument(metavar="PASS.yaml", help="A recipe: passes, in order.", show_default=False)
    ],
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX models; one or many.", show_default=False)
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The new model, which may be the model itself; for many models, or with a slash at its end, a folder. "
            "[default: MODEL-PASS.onnx next to each model]",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Models at a time, each in its process.")] = 1,
    link: Annotated[
        bool, typer.Option("--link", help="Link external weight files to the new model's folder; do not copy them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would change; write nothing.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Operate on models: apply the passes of a recipe and save the results.

    Example: `surgery apply pass.yaml lenet.onnx -o operated.onnx --set replace_head.units=14`

    Many at once: `surgery apply pass.yaml models/*.onnx -o out/ -j 4`; one that fails does not stop the others.
    """
    from surgery.recipe import load_recipe

    load_recipe(recipe, overrides or [])
    many = len(models) > 1 or (output is not None and (output.endswith("/") or Path(output).is_dir()))
    tasks = [
        _Task(recipe, tuple(overrides or ()), model, target, link, dry_run)
        for model, target in zip(models, _targets(recipe, models, output, many), strict=True)
    ]
    if many:
        _apply_many(tasks, jobs, quiet, as_json)
        return
    done = _operate(tasks[0])
    if as_json:
        print_json(done.as_data())
        return
    for name, changes in done.passes:
        say(name if changes else f"{name}: nothing to change", quiet)
        for where, what in changes:
            say(f"  {where}: {what}", quiet)
    say(f"before: {done.before}\nafter:  {done.after}", quiet)
    say("dry run: nothing was written" if dry_run else f"saved {done.output}", quiet)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What to do with one model; plain data, for other processes."""

    recipe: Path
    overrides: tuple[str, ...]
    model: Path
    target: Path
    link: bool
    dry_run: bool


@dataclasses.dataclass
class _Done:
    """What came of a task: ``error`` and its exit code, or the rest."""

    model: Path
    output: Path | None = None
    passes: list[tuple[str, list[tuple[str, str]]]] = dataclasses.field(default_factory=list)
    before: str = ""
    after: str = ""
    error: str | None = None
    code: int = 0

    def as_data(self) -> dict[str, Any]:
        """As `--json` prints it."""
        if self.error is not None:
            return {"model": str(self.model), "error": self.error}
        return {
            "model": str(self.model),
            "output": None if self.output is None else str(self.output),
            "passes": [
                {"pass": name, "changes": [{"where": where, "what": what} for where, what in changes]}
                for name, changes in self.passes
            ],
        }


def _targets(recipe: Path, models: Sequence[Path], output: str | None, many: bool) -> list[Path]:
    """Where each result goes.

    Raises:
        SurgeryError: Two would go to the same file, or one onto another model.
    """
    from surgery.errors import SurgeryError

    if output is None:
        targets = [model.with_name(f"{model.stem}-{recipe.stem}.onnx") for model in models]
    elif many:
        if Path(output).is_file():
            raise SurgeryError(f"{output}: is a file; name a folder for {len(models)} models")
        targets = [Path(output) / model.name for model in models]
    else:
        targets = [Path(output)]
    sources = {model.resolve(): model for model in models}
    taken: dict[Path, Path] = {}
    for model, target in zip(models, targets, strict=True):
        place = target.resolve()
        if place in taken:
            raise SurgeryError(
                f"{taken[place]} and {model} would both be saved as {target}; rename one, or do it alone"
            )
        if sources.get(place, model).resolve() != model.resolve():
            raise SurgeryError(f"{model} would be saved as {target}, which is another of the models; name a folder: -o")
        taken[place] = model
    return targets


def _operate(task: _Task) -> _Done:
    """Does one task.

    Raises:
        SurgeryError: The model cannot be read, the recipe does not fit it, or the result cannot be written.
    """
    from surgery.io import load, save
    from surgery.recipe import apply_recipe, load_recipe
    from surgery.viewing.summary import in_words

    plan = load_recipe(task.recipe, task.overrides)
    model = load(task.model)
    before = in_words(model)
    report = apply_recipe(plan, model)
    if not task.dry_run:
        save(model, task.target, link=task.link)
    return _Done(
        task.model,
        None if task.dry_run else task.target,
        [(name, [(change.where, change.what) for change in changes]) for name, changes in report],
        before,
        in_words(model),
    )


def _try(task: _Task) -> _Done:
    """Does one task; failures are told in what it returns."""
    from surgery.errors import SurgeryError

    try:
        return _operate(task)
    except SurgeryError as error:
        return _Done(task.model, error=str(error), code=2)
    except Exception as error:
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return _Done(task.model, error=f"{type(error).__name__}: {text} (a fault of Surgery)", code=1)


def _apply_many(tasks: Sequence[_Task], jobs: int, quiet: bool, as_json: bool) -> None:
    """Does tasks, shows how far it is, and what came of each at the end; exits with the worst code."""
    with _progress(len(tasks), quiet or as_json) as advance:
        results = []
        for done in _run(tasks, jobs):
            results.append(done)
            advance()
    failed = [done for done in results if done.error is not None]
    if as_json:
        print_json({"models": [done.as_data() for done in results], "failed": len(failed)})
    else:
        say(_table(results), quiet)
        say(f"{len(results) - len(failed)} of {len(results)} models done, {len(failed)} failed", quiet)
        for done in failed if quiet else []:
            print(f"surgery: {done.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(min(done.code for done in failed))


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[_Done]:
    """What comes of each task, in their order."""
    if jobs == 1:
        yield from map(_try, tasks)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    context = get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), context) as pool:
        try:
            for task, future in [(task, pool.submit(_try, task)) for task in tasks]:
                try:
                    yield future.result()
                except BrokenProcessPool:  # a process was ended, which stops them all: this one tries again, alone
                    yield _alone(task, context)
        except BaseException:  # Ctrl-C
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _alone(task: _Task, context: Any) -> _Done:
    """Does a task in a process that does nothing else."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_try, task).result()
        except BrokenProcessPool:
            error = f"{task.model}: the process that worked on it was ended, maybe for want of memory"
            return _Done(task.model, error=error, code=1)


def _progress(total: int, quiet: bool) -> Any:
    """A bar on the terminal; a context whose value is called for each that is done."""
    import contextlib

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextlib.contextmanager
    def bar() -> Iterator[Callable[[], None]]:
        columns = TextColumn("operating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        hidden = quiet or not sys.stderr.isatty()
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
            task = progress.add_task("operating", total=total)
            yield lambda: progress.advance(task)

    return bar()


def _table(results: Sequence[_Done]) -> Any:
    from rich.table import Table

    table = Table("model", "changes", "after", "saved as")
    for done in results:
        if done.error is not None:
            table.add_row(str(done.model), "", f"failed: {done.error}", "", style="red")
        else:
            changes = sum(len(changes) for _, changes in done.passes)
            table.add_row(str(done.model), str(changes), done.after, str(done.output or "nothing: a dry run"))
    for column in table.columns:
        column.overflow = "fold"
    return table
