from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

import surgery
from surgery.data import from_arrays
from surgery.demo.digits import digits
from surgery.errors import SurgeryError
from surgery.passes import Freeze
from surgery.viewing.landscape import directions, landscape, plot_landscape, save_landscape
from tests.cli.test_cli import fails
from tests.cli.test_cli import run as command
from tests.nets import Residual, batches, graph_with_input, lenet, model_of, parameter, residual, torch_lenet


def linear(rng: np.random.Generator, inputs: int = 5, units: int = 3) -> ir.Model:
    op, x = graph_with_input("N", inputs)
    weight = parameter(op, "w", torch.from_numpy(rng.standard_normal((units, inputs)).astype(np.float32)))
    bias = parameter(op, "b", torch.from_numpy(rng.standard_normal(units).astype(np.float32)))
    return model_of(op.graph, {"y": op.Gemm(x, weight, bias, transB=1, _name="layer")})


def array(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]


def test_directions_have_each_filters_norm_and_leave_vectors_alone(rng: np.random.Generator) -> None:
    model = residual(Residual())
    found = directions(model, rng)
    assert set(found) == {"conv1.weight", "conv2.weight", "fc.weight"}
    for name, direction in found.items():
        for row, weights in zip(direction, array(model, name), strict=True):  # a filter, or a unit's weights
            assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(weights), rel=1e-5)
    first, second = (directions(model, np.random.default_rng(s))["fc.weight"].ravel() for s in (1, 2))
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(cosine) < 0.6  # 32 numbers


def test_a_linear_models_surface_is_the_closed_form(rng: np.random.Generator) -> None:
    model = linear(rng)
    x, y = rng.standard_normal((40, 5)).astype(np.float32), rng.standard_normal((40, 3)).astype(np.float32)
    found = landscape(model, (x, y), points=5, span=0.5, batch_size=16, seed=3)
    assert found.at.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    drawn = np.random.default_rng(3)
    d1, d2 = (directions(model, drawn)["w"] for _ in range(2))
    for i, a in enumerate(found.at):
        for j, b in enumerate(found.at):
            error = x @ (array(model, "w") + a * d1 + b * d2).T + array(model, "b") - y
            assert found.loss[i, j] == pytest.approx((error**2).mean(), rel=1e-5)
            assert found.measures["mean_absolute_error"][i, j] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    row, column = np.unravel_index(found.loss.argmin(), (5, 5))
    assert found.lowest == (found.at[row], found.at[column], found.loss.min())


@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_the_middle_is_what_evaluate_measures(frozen: int) -> None:
    model = lenet(torch_lenet())
    if frozen:
        Freeze(layers={"first": frozen})(model)
    arrays = digits(100)
    data = arrays["x_test"][:100], arrays["y_test"][:100]
    found = landscape(model, data, points=3, batch_size=32)
    scores = surgery.evaluate(model, data)
    for name, values in found.measures.items():
        assert values[1, 1] == pytest.approx(scores.measures[name], rel=1e-5)
    assert found.examples == 100
    assert (np.delete(found.loss.ravel(), 4) != found.loss[1, 1]).all()


def test_statistics_and_the_frozen_part_do_not_move(rng: np.random.Generator) -> None:
    """The same surface, by moving a copy's weights one point at a time."""
    model = residual(Residual())
    Freeze(layers="conv1")(model)
    data = batches(1, 30, (3, 8, 8), 4)[0]
    found = landscape(model, data, points=3, span=0.4, seed=5)  # type: ignore[arg-type]
    drawn = np.random.default_rng(5)
    d1, d2 = (directions(model, drawn) for _ in range(2))
    assert set(d1) == {"conv2.weight", "fc.weight"}
    for (i, a), (j, b) in [((0, -0.4), (2, 0.4)), ((2, 0.4), (1, 0.0))]:
        moved = model.clone()
        for name in d1:
            moved.graph.initializers[name].const_value = ir.tensor(array(model, name) + a * d1[name] + b * d2[name])
        assert found.loss[i, j] == pytest.approx(surgery.evaluate(moved, data).loss, rel=1e-4)  # type: ignore[arg-type]


def test_some_examples_are_drawn_by_the_seed(rng: np.random.Generator) -> None:
    model = linear(rng)
    data = rng.standard_normal((40, 5)).astype(np.float32), rng.standard_normal((40, 3)).astype(np.float32)
    counts: list[tuple[int, int]] = []
    found = landscape(model, data, points=3, examples=10, batch_size=4, progress=lambda *c: counts.append(c))
    assert found.examples == 10
    assert counts == [(k, 27) for k in range(1, 28)]
    np.testing.assert_allclose(found.loss, landscape(model, data, points=3, examples=10).loss, rtol=1e-5)


def test_a_landscape_is_drawn_and_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 5)).astype(np.float32)
    model = linear(rng)
    for name, y in (("some", surgery.predict(model, x) + 0.1), ("none", surgery.predict(model, x))):
        found = landscape(model, (x, y), points=9)  # of the second, the loss in the middle is 0
        plot_landscape(found, tmp_path / f"{name}.png", name)
        save_landscape(found, tmp_path / f"{name}.npz")
        assert Image.open(tmp_path / f"{name}.png").size[0] > 400
        again = np.load(tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(again["loss"], found.loss)
        np.testing.assert_array_equal(again["at"], found.at)
        assert again["examples"] == 40


def test_infinite_losses_leave_holes(tmp_path: Path, rng: np.random.Generator) -> None:
    model = linear(rng)
    x = (rng.standard_normal((4, 5)) * 1e19).astype(np.float32)
    found = landscape(model, (x, surgery.predict(model, x)), points=5, span=3)
    assert np.isnan(found.loss[0, 0])
    assert found.loss[2, 2] == 0
    plot_landscape(found, tmp_path / "holes.png")
    assert "0 in the middle, which is the lowest" in str(found)


def test_faults_are_told(rng: np.random.Generator) -> None:
    model = linear(rng)
    data = from_arrays(rng.standard_normal((4, 5)), rng.standard_normal((4, 3)), model)
    for points in (1, 10):
        with pytest.raises(SurgeryError, match="odd number"):
            landscape(model, data, points=points)
    for span in (0, np.inf):
        with pytest.raises(SurgeryError, match="span"):
            landscape(model, data, span=span)
    Freeze(layers="all")(model)
    with pytest.raises(SurgeryError, match="every parameter is frozen"):
        landscape(model, data)


def test_the_command_draws_saves_and_reports(tmp_path: Path) -> None:
    surgery.save(lenet(torch_lenet()), tmp_path / "lenet.onnx")
    arrays = digits(100)
    np.savez(tmp_path / "d.npz", **{k: v[:50] for k, v in arrays.items()})  # type: ignore[arg-type]
    words = [
        "landscape",
        tmp_path / "lenet.onnx",
        tmp_path / "d.npz",
        "-o",
        tmp_path / "out" / "l.png",
        "--points",
        "3",
    ]
    done = command(*words, "--examples", "20")
    assert "3×3 points on 20 examples" in done.stdout
    assert (tmp_path / "out" / "l.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(command(*words, "--json").stdout)
    np.testing.assert_allclose(told["loss"], np.load(tmp_path / "out" / "l.npz")["loss"])
    assert (told["examples"], told["split"]) == (50, "test")
    assert "odd number" in fails(*words[:-1], "4")
    assert "name the picture, as" in fails(*words[:4], tmp_path / "l.npz")
