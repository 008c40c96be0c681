"""Passes that only set marks: freeze, unfreeze, max_norm, learning_rate; and reinitialize."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery.passes
from surgery.errors import SurgeryError
from surgery.layers import find_layer, layers
from surgery.marks import Constraint, marks, set_marks
from surgery.passes import Freeze, LearningRate, MaxNorm, Pass, Reinitialize, Unfreeze
from surgery.training.optimizers import Sgd, chain
from surgery.training.step import training_step
from tests.graphs import cnn, parse, run, weights_of

IMAGE = np.random.default_rng(1).normal(size=(2, 3, 10, 10)).astype(np.float32)


def trainable(model: ir.Model) -> set[str]:
    return {n for n, v in model.graph.initializers.items() if marks(v).trainable}


class TestFreeze:
    def test_statistics_of_a_frozen_normalization_are_frozen_too(self) -> None:
        model = cnn()
        changes = Freeze(layers={"first": 3})(model).changes
        assert [str(c) for c in changes] == [
            "c1: frozen (weight, bias)",
            "c2: frozen (weight)",
            "n2: frozen (scale, bias, mean, var)",
        ]
        assert trainable(model) == {"w3", "b3"}
        assert not Freeze(layers={"first": 3})(model).changes

    def test_unfreeze_undoes_it(self) -> None:
        model = cnn()
        Freeze(layers="all")(model)
        Unfreeze(layers={"last": 2})(model)
        assert trainable(model) == {"s", "b", "m", "v", "w3", "b3"}
        Unfreeze(layers="all")(model)
        assert all(not v.metadata_props for v in model.graph.initializers.values())

    def test_unfreeze_undoes_a_multiplier_of_zero(self) -> None:
        model = cnn()
        LearningRate(layers=["c1", "n2"], multiplier=0.0)(model)
        LearningRate(layers="c2", multiplier=2.0)(model)
        changes = Unfreeze(layers="all")(model).changes
        assert [str(c) for c in changes] == [
            "c1: trainable (weight, bias), learning rate of weight, bias × 1 instead of × 0",
            "n2: trainable (scale, bias, mean, var), learning rate of scale, bias, mean, var × 1 instead of × 0",
        ]
        assert not any(marks(v).frozen for v in model.graph.initializers.values())
        assert marks(model.graph.initializers["w2"]).learning_rate == 2
        assert not Unfreeze(layers="all")(model).changes
        LearningRate(layers="all", multiplier=0.0)(model)
        with pytest.raises(SurgeryError, match="every parameter is frozen"):
            training_step(model, chain(Sgd()))
        Unfreeze(layers="h")(model)
        assert training_step(model, chain(Sgd())).weights == ["w3", "b3"]

    def test_layers_without_parameters(self) -> None:
        assert Freeze(layers=["r1", "c1"])(cnn()).changes
        with pytest.raises(
            SurgeryError, match=r"none of the selected layers has parameters that could be frozen \(r1\)"
        ):
            Freeze(layers="r1")(cnn())


class TestMaxNorm:
    @pytest.mark.parametrize(
        ("body", "weight", "axes"),
        [
            ("y = Conv(x, w)", [7, 3, 2, 2], (1, 2, 3)),
            ("y = Conv<group = 3>(x, w)", [6, 1, 2, 2], (1, 2, 3)),
            ("y = ConvTranspose(x, w)", [3, 7, 2, 2], (0, 2, 3)),
            ("y = ConvTranspose<group = 3>(x, w)", [3, 2, 2, 2], (2, 3)),
            ("f = Flatten(x) y = Gemm(f, w)", [48, 7], (0,)),
            ("f = Flatten(x) y = Gemm<transB = 1>(f, w)", [7, 48], (1,)),
            ("f = Flatten(x) y = MatMul(f, w)", [48, 7], (0,)),
            ("f = Flatten(x) t = Transpose(w) y = MatMul(f, t)", [7, 48], (1,)),
            ("f = Flatten(x) i = Identity(w) t = Transpose(i) y = Gemm<transB = 1>(f, t)", [48, 7], (0,)),
            ("t = Transpose<perm = [3, 2, 0, 1]>(w) y = Conv(x, t)", [2, 2, 3, 7], (0, 1, 2)),
            ("f = Flatten<axis = 0>(x) t = Transpose(f) y = MatMul(w, t)", [7, 48], (1,)),
            ("f = Flatten<axis = 0>(x) y = Gemm<transB = 1>(w, f)", [7, 48], (1,)),
            ("f = Flatten<axis = 0>(x) y = Gemm<transA = 1, transB = 1>(w, f)", [48, 7], (0,)),
            ('y = Einsum<equation = "nchw,chwm->nm">(x, w)', [3, 4, 4, 7], (0, 1, 2)),
        ],
    )
    def test_axes_are_those_of_one_units_incoming_weights(
        self, body: str, weight: list[int], axes: tuple[int, ...]
    ) -> None:
        """One unit's norm by hand: the norm of the changes of that unit by each single input."""
        model = parse("(float[1,3,4,4] x) => (float[A] y)", body, {"w": weight})
        model.graph.outputs[0].shape = None
        assert MaxNorm(value=2)(model).changes
        assert marks(model.graph.initializers["w"]).constraint == Constraint("max_norm", 2.0, axes)

        norms = np.sqrt((weights_of(model)["w"].astype(np.float64) ** 2).sum(axes)).ravel()
        inputs = np.eye(48, dtype=np.float32).reshape(48, 1, 3, 4, 4)
        outputs = np.stack([run(model, x, checked=False)[0] for x in inputs])  # the graph is linear
        per_output = np.sqrt((outputs.astype(np.float64) ** 2).sum(0))
        if "= Conv(" in body or "= Conv<" in body:
            units = per_output[0, :, 0, 0]  # a place that sees the whole kernel
        elif "ConvTranspose" in body:
            units = per_output[0, :, 1, 1]
        else:
            units = per_output.ravel()
        np.testing.assert_allclose(np.sort(norms), np.sort(units), rtol=1e-5)

    def test_other_weights(self) -> None:
        model = parse(
            "(int64[T,N] x) => (float[T,1,N,4] y)",
            "e = Gather(w, x) y, h, c = LSTM<hidden_size = 4>(e, wi, wr)",
            {"w": [9, 3], "wi": [1, 16, 3], "wr": [1, 16, 4]},
        )
        MaxNorm(value=3)(model)
        found = {n: marks(v).constraint for n, v in model.graph.initializers.items()}
        assert {n: c.axes for n, c in found.items() if c} == {"w": (1,), "wi": (2,), "wr": (2,)}

    def test_weights_only(self) -> None:
        model = cnn()
        MaxNorm(value=3.5, layers="all")(model)
        bounded = {n for n, v in model.graph.initializers.items() if marks(v).constraint}
        assert bounded == {"w1", "w2", "w3"}

    def test_again_changes_nothing_and_another_value_replaces(self) -> None:
        model = cnn()
        MaxNorm(value=3, layers="c1")(model)
        assert not MaxNorm(value=3, layers="c1")(model).changes
        changes = MaxNorm(value=4, layers="c1")(model).changes
        assert [str(c) for c in changes] == ["c1: max_norm 4 over axes 1, 2, 3 of weight"]

    def test_layers_without_weights(self) -> None:
        with pytest.raises(SurgeryError, match="none of the selected layers has weights"):
            MaxNorm(value=3, layers=["r1", "n2"])(cnn())

    def test_a_weight_that_layers_share_along_different_axes(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,8] y)",
            "a = MatMul(x, w) y = Gemm<transB = 1>(a, w)",
            {"w": [8, 8]},
        )
        with pytest.raises(SurgeryError, match="share the weight 'w'"):
            MaxNorm(value=3)(model)

    def test_groups_whose_units_lie_along_no_axis(self) -> None:
        model = parse(
            "(float[N,4,9,9] x) => (float[N,6,9,9] y)", "y = ConvTranspose<group = 2>(x, w)", {"w": [4, 3, 1, 1]}
        )
        with pytest.raises(SurgeryError, match="ConvTranspose 'y' with 2 groups"):
            MaxNorm(value=3)(model)


class TestLearningRate:
    def test_with_a_rate_of_their_own_for_biases(self) -> None:
        model = cnn()
        changes = LearningRate(layers=["c1", "r1", "h"], multiplier=0.1, bias=0.2)(model).changes
        assert [str(c) for c in changes] == [
            "c1: learning rate of weight × 0.1, bias × 0.2",
            "h: learning rate of weight × 0.1, bias × 0.2",
        ]
        rates = {n: marks(v).learning_rate for n, v in model.graph.initializers.items()}
        assert {n: r for n, r in rates.items() if r != 1} == {"w1": 0.1, "b1": 0.2, "w3": 0.1, "b3": 0.2}
        assert not LearningRate(layers=["c1", "r1", "h"], multiplier=0.1, bias=0.2)(model).changes

    def test_zero_equals_frozen_statistics_included(self) -> None:
        model = cnn()
        LearningRate(layers="n2", multiplier=0)(model)
        layer = find_layer(model, "n2")
        assert not layer.trainable
        assert all(marks(p).frozen for p in layer.parameters.values())
        LearningRate(layers="n2", multiplier=0.5)(model)
        assert {r: marks(p).learning_rate for r, p in layer.parameters.items()} == {
            "scale": 0.5,
            "bias": 0.5,
            "mean": 1,
            "var": 1,
        }

    def test_training_leaves_what_has_a_rate_of_zero(self) -> None:
        model = cnn()
        assert {"w2", "s", "m", "v"} <= set(training_step(model, chain(Sgd())).carried)
        LearningRate(layers=["c2", "n2"], multiplier=0)(model)
        weights = {name for name in training_step(model, chain(Sgd())).carried if "/" not in name}
        assert weights == {"w1", "b1", "w3", "b3"}

    def test_layers_without_parameters(self) -> None:
        with pytest.raises(SurgeryError, match="none of the selected layers has parameters"):
            LearningRate(layers="r1", multiplier=1)(cnn())


class TestReinitialize:
    def test_weights_biases_and_normalization(self) -> None:
        model = cnn()
        set_marks(model.graph.initializers["w1"], learning_rate=0.5)
        before = weights_of(model)
        Reinitialize(layers=["c1", "c2", "n2"], initializer="he_uniform")(model)
        after = weights_of(model)
        for name, fan_in in (("w1", 27), ("w2", 36)):
            assert 0.8 * np.sqrt(6 / fan_in) < np.abs(after[name]).max() <= np.sqrt(6 / fan_in)
        for name, value in (("b1", 0), ("s", 1), ("b", 0), ("m", 0), ("v", 1)):
            assert (after[name] == value).all()
        np.testing.assert_array_equal(after["w3"], before["w3"])
        assert marks(model.graph.initializers["w1"]).learning_rate == 0.5
        assert np.isfinite(run(model, IMAGE)[0]).all()

    def test_fans_go_by_the_layout(self) -> None:
        model = parse(
            "(float[N,200] x) => (float[N,100] y)",
            "a = MatMul(x, w1) b = Gemm<transB = 1>(a, w2) y = Gemm(b, w3)",
            {"w1": [200, 100], "w2": [300, 100], "w3": [300, 100]},
        )
        Reinitialize(layers="all", initializer="he")(model)
        deviations = {n: a.std() for n, a in weights_of(model).items()}
        assert deviations == {
            n: pytest.approx(np.sqrt(2 / f), rel=0.03) for n, f in {"w1": 200, "w2": 100, "w3": 300}.items()
        }

    def test_the_seed_says_which_numbers(self) -> None:
        model = cnn()
        Reinitialize(layers="all", seed=1)(model)
        first = weights_of(model)
        assert not Reinitialize(layers="all", seed=1)(model).changes
        assert Reinitialize(layers="all", seed=2)(model).changes
        assert not np.array_equal(weights_of(model)["w1"], first["w1"])

    def test_layers_without_parameters(self) -> None:
        with pytest.raises(SurgeryError, match="none of the selected layers has parameters"):
            Reinitialize(layers="r1")(cnn())


@pytest.mark.parametrize(
    "step",
    [Freeze(layers="all"), MaxNorm(value=1), LearningRate(layers="all", multiplier=3), Unfreeze(layers="all")],
)
def test_marks_change_no_output(step: Pass) -> None:
    model = cnn()
    (before,) = run(model, IMAGE)
    step(model)
    np.testing.assert_array_equal(run(model, IMAGE)[0], before)
    assert [layer.index for layer in layers(model)] == [layer.index for layer in layers(cnn())]


def test_a_pass_runs_among_onnx_irs_own() -> None:
    model = cnn()
    result: Any = ir.passes.Sequential(Freeze(layers={"first": 1}), MaxNorm(value=2))(model)
    assert result.modified
    assert not find_layer(model, "c1").trainable


def test_a_pass_that_there_is_not_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match="surgery has no pass 'Freze'; did you mean 'Freeze'"):
        surgery.passes.Freze  # noqa: B018


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a pass named freeze already, in surgery\.passes\.freeze"):
        type("Freeze", (Pass,), {"__module__": "elsewhere"})
    assert surgery.passes.registry["freeze"] is Freeze
