"""The loss around a trained network, along two random directions (Li et al. 2018, arXiv:1712.09913).

At (a, b) the weights are w + a·d₁ + b·d₂. Each direction is drawn from a normal distribution and *filter-normalized*
(section 4 of the paper): the part of it that belongs to a unit gets the norm of that unit's incoming weights, so that
networks whose weights are scaled differently can be compared. Biases, normalization parameters and running statistics
stay as they are, as in the authors' figures; so does what is frozen.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Dataset, Source, as_part
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import replacing
from surgery.layers import find_output, layers
from surgery.passes.units import incoming_weights
from surgery.training.forward import Objective, trainable_parameters
from surgery.training.frozen import Prefix, Uncached, features
from surgery.training.prefix import Split, split
from surgery.training.settings import CacheSettings
from surgery.training.step import Step, evaluation_step
from surgery.training.targets import count, fit, objective_of
from surgery.viewing.figures import new_figure, write_png

__all__ = ["Landscape", "directions", "landscape", "plot_landscape", "save_landscape"]


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The loss on a square grid around a network's weights.

    Attributes:
        at: `[points]`, the coordinates along each direction; 0 in the middle.
        measures: By name, `[points, points]` of what is measured; ``loss`` first. Rows go along the first direction.
        examples: On how many examples.
    """

    at: np.ndarray
    measures: dict[str, np.ndarray]
    examples: int

    @property
    def loss(self) -> np.ndarray:
        """The loss, `[points, points]`."""
        return self.measures["loss"]

    @property
    def lowest(self) -> tuple[float, float, float]:
        """Where the loss is lowest, and that loss."""
        row, column = np.unravel_index(np.nanargmin(self.loss), self.loss.shape)
        return float(self.at[row]), float(self.at[column]), float(self.loss[row, column])

    def __str__(self) -> str:
        middle = self.loss[len(self.at) // 2, len(self.at) // 2]
        a, b, least = self.lowest
        where = "which is the lowest" if (a, b) == (0, 0) else f"the lowest is {least:.4g} at ({a:.2g}, {b:.2g})"
        return f"the loss is {middle:.4g} in the middle, {where}; the highest is {np.nanmax(self.loss):.4g}"


def landscape(
    model: ir.Model,
    data: Source,
    *,
    points: int = 21,
    span: float = 1.0,
    examples: int | None = None,
    loss: Objective = "auto",
    output: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: runtime.Device = "auto",
    part: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Landscape:
    """Measures the loss around `model`, as it infers, along two filter-normalized random directions.

    What is frozen is computed once for each example, the rest for each point.

    Args:
        model: The trained model; its trainable weights move.
        data: What to measure on.
        points: Along each direction; odd, so that the model itself is in the middle.
        span: The largest coordinate: 1 moves each unit's weights by their own norm.
        examples: At most so many, drawn with the seed; all by default.
        loss: As `surgery.evaluate` takes it.
        output: The output to measure; needed where there are several.
        batch_size: Examples at a time.
        seed: Of the directions.
        device: Where to run.
        part: Which part of `data`, of a path.
        progress: Called with how many of the evaluations are done, and of how many.

    Raises:
        SurgeryError: Nothing is trainable, or the data do not fit the model.
    """
    if points < 3 or points % 2 == 0:
        raise SurgeryError(f"{points} points: an odd number, 3 at least, has the model in the middle")
    if not 0 < span < np.inf:
        raise SurgeryError(f"a span of {span:g}: it must be a number above 0")
    rng = np.random.default_rng(seed)
    moved = directions(model, rng), directions(model, rng)
    chosen = as_part(data, model, part)
    if examples is not None and examples < len(chosen):
        chosen = chosen.subset(np.sort(rng.permutation(len(chosen))[:examples]))
    objective = objective_of(model, loss, output, chosen.targets)
    providers = runtime.providers(device)
    network, chosen = _without_frozen(model, chosen, objective, output, providers)
    step = evaluation_step(network, loss=objective, output=output, changing=True)
    chosen = fit(chosen, step)
    session = runtime.session(_movable(step, moved), providers)
    at = np.linspace(-span, span, points)
    at[points // 2] = 0
    total = np.zeros((points, points, len(step.measures)))
    done, steps = 0, -(-len(chosen) // batch_size) * points**2
    for inputs, targets in chosen.batches(batch_size):
        feed = _feed(step, inputs, targets)
        for i, j in np.ndindex(points, points):
            where = {"along/1": np.array(at[i], np.float32), "along/2": np.array(at[j], np.float32)}
            total[i, j] += count(targets) * np.array(session.run(None, feed | where))
            done += 1
            if progress is not None:
                progress(done, steps)
    means = total / len(chosen)
    if not np.isfinite(means[points // 2, points // 2, 0]):
        chosen.check_finite()
        raise SurgeryError("the model's own loss is not a finite number")
    means[~np.isfinite(means)] = np.nan
    return Landscape(at, {name: means[..., k] for k, name in enumerate(step.measures)}, len(chosen))


def directions(model: ir.Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws a filter-normalized direction for each trainable weight of two or more axes, by its name.

    Raises:
        SurgeryError: There is no such weight.
    """
    trained = {p.name for p in trainable_parameters(model)}
    found: dict[str, np.ndarray] = {}
    for layer in layers(model):
        matrices = [p for role, p in layer.parameters.items() if "weight" in role and len(p.shape or ()) > 1]
        if not any(p.name in trained for p in matrices):
            continue
        for weight, axes in incoming_weights(layer):
            name = str(weight.name)
            if name not in trained or name in found or len(weight.shape or ()) < 2:
                continue
            assert weight.const_value is not None
            array = weight.const_value.numpy()
            drawn = rng.standard_normal(array.shape)
            norms = (np.sqrt((x.astype(np.float64) ** 2).sum(axes, keepdims=True)) for x in (array, drawn))
            found[name] = (drawn * np.divide(*norms)).astype(np.float32)
    if not found:
        raise SurgeryError("only biases and normalization are trainable: there is nothing to move; unfreeze a layer")
    return found


def _without_frozen(
    model: ir.Model, data: Dataset, objective: Any, output: str | None, providers: list[str]
) -> tuple[ir.Model, Dataset]:
    """What is behind the frozen part, and what that part makes of `data`; both as they are where it is of no use."""
    names = list(objective) if isinstance(objective, dict) else [output]
    parts = split(model, {str(find_output(model, name).name) for name in names})
    if not isinstance(parts, Split):
        return model, data
    try:
        return parts.rest, features(Prefix(parts, providers), data, CacheSettings()).data
    except Uncached:
        return model, data


def _movable(step: Step, moved: tuple[dict[str, np.ndarray], ...]) -> ir.Model:
    """The step's graph with weights that go along the directions as two more inputs say."""
    model = step.model
    graph, op = model.graph, Emitter(model.graph, "landscape/")
    along = [ir.val(f"along/{k}", ir.DataType.FLOAT, ()) for k in (1, 2)]
    for value in [v for v in graph.inputs if v.name in step.weights]:
        name = str(value.name)
        graph.inputs.remove(value)
        value.const_value = ir.tensor(step.initial[name], name=name)
        graph.register_initializer(value)
        if name not in moved[0]:
            continue
        users = list(value.uses())
        place = value
        for direction, far in zip(moved, along, strict=True):
            place = op.Add(place, op.Mul(op.constant(direction[name]), far))
        place.shape, place.type = value.shape, value.type
        for node, index in users:
            node.replace_input_with(index, place)
    graph.inputs.extend(along)
    graph.sort()
    return model


def _feed(step: Step, inputs: Any, targets: Any) -> dict[str, np.ndarray]:
    feed = {name: inputs[name] if isinstance(inputs, dict) else inputs for name in step.batch}
    return feed | {t.target: targets[t.output] if isinstance(targets, dict) else targets for t in step.terms}


def plot_landscape(found: Landscape, path: str | os.PathLike[str], title: str = "") -> None:
    """Draws the loss as a map with contour lines, at equal steps of its logarithm, into a PNG file.

    Raises:
        SurgeryError: matplotlib is missing or the file cannot be written.
    """
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    loss = np.ma.masked_invalid(found.loss.T)  # x goes along the first direction
    low, high = float(loss.min()), float(loss.max())
    low = max(low, high * 1e-6, 1e-12)
    levels = np.geomspace(low, max(high, low * (1 + 1e-6)), 16)
    drawn = axes.contourf(found.at, found.at, np.ma.maximum(loss, low), np.unique(levels), cmap="viridis", norm="log")
    lines = axes.contour(found.at, found.at, np.ma.maximum(loss, low), levels[1:-1:2], colors="white", linewidths=0.6)
    axes.clabel(lines, fmt="%.3g", fontsize=7)
    bar = figure.colorbar(drawn, ax=axes, label="loss", format="%.3g", ticks=levels[::3])
    bar.ax.minorticks_off()
    axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=6)
    axes.set_xlabel("along the first direction")
    axes.set_ylabel("along the second")
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    if title:
        axes.set_title(title)
    write_png(figure, path)


def save_landscape(found: Landscape, path: str | os.PathLike[str]) -> None:
    """Writes a landscape's numbers as a ``.npz`` file: ``at``, each measure by its name, ``examples``.

    Raises:
        SurgeryError: The file cannot be written.
    """
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        np.savez(file, at=found.at, examples=np.array(found.examples), **found.measures)  # type: ignore[arg-type]
