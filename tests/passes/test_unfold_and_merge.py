"""unfold: the same function with normalizations; merge_labels: sums of probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.layers import find_layer
from surgery.marks import labels, marks, set_labels, set_marks
from surgery.passes import FoldBatchnorm, MergeLabels, Unfold
from surgery.recipe import apply
from tests.graphs import cnn, mlp, parse, run

IMAGE = np.random.default_rng(1).normal(size=(40, 3, 10, 10)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
BODIES = {
    "conv": ("y = Conv(x, w)", {"w": [6, 3, 3, 3]}),
    "bias": ("y = Conv(x, w, bias)", {"w": [6, 3, 3, 3], "bias": [6]}),
    "add": ("d = Conv(x, w) y = Add(bias, d)", {"w": [6, 3, 3, 3], "bias": [6, 1, 1]}),
    "transposed": ("y = ConvTranspose<group = 3>(x, w, bias)", {"w": [3, 2, 3, 3], "bias": [6]}),
    "gemm": ("f = Flatten(x) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w, bias)", {"w": [6, 300], "bias": [6]}),
    "matmul": ("f = Flatten(x) d = MatMul(f, w) y = Add(d, bias)", {"w": [300, 6], "bias": [6]}),
}


class TestUnfold:
    @pytest.mark.parametrize("kind", BODIES)
    @pytest.mark.parametrize("measured", [True, False])
    def test_outputs_stay_the_same(self, kind: str, measured: bool, tmp_path: Path) -> None:
        body, weights = BODIES[kind]
        shape = "N,6" if "Flatten" in body else "N,6,A,B"
        model = parse(f"(float[N,3,10,10] x) => (float[{shape}] y)", body, weights)
        set_marks(model.graph.initializers.get("bias", model.graph.initializers["w"]), learning_rate=2.0)
        before = run(model, IMAGE, checked=False)[0]
        np.savez(tmp_path / "d.npz", x=IMAGE, y=np.zeros(len(IMAGE), np.int64))
        changes = Unfold("all", data=str(tmp_path / "d.npz") if measured else None)(model).changes
        assert len(changes) == 1
        norm = find_layer(model, f"{changes[0].where}/norm")
        np.testing.assert_allclose(run(model, IMAGE)[0], before, rtol=1e-4, atol=1e-4)
        assert not Unfold("all")(model).changes
        if "bias" in weights:
            assert "bias" not in model.graph.initializers
            assert marks(norm.parameters["bias"]).learning_rate == 2
        if measured:  # so that a batch of the examples themselves is normalized to the same
            axes = (0, *range(2, before.ndim))
            scale, shift, _, variance = (v.const_value.numpy() for v in norm.parameters.values())  # type: ignore[union-attr]
            np.testing.assert_allclose(shift, before.mean(axes), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(variance, before.var(axes), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(scale**2, variance + 1e-5, rtol=1e-4)

    def test_folding_is_the_inverse(self) -> None:
        model = cnn()
        before = run(model, IMAGE)[0]
        Unfold("c1")(model)
        assert [n.op_type for n in model.graph][:2] == ["Conv", "BatchNormalization"]
        assert FoldBatchnorm("all")(model).changes
        np.testing.assert_allclose(run(model, IMAGE)[0], before, rtol=1e-5)
        assert "BatchNormalization" not in [n.op_type for n in model.graph]

    def test_layers_that_have_a_normalization_are_left(self) -> None:
        changes = Unfold({"type": "Conv"})(cnn()).changes
        assert [c.where for c in changes] == ["c1"]

    def test_a_frozen_layers_normalization_is_frozen(self) -> None:
        model = parse("(float[N,3,10,10] x) => (float[N,6,A,B] y)", *BODIES["bias"])
        apply(model, [{"freeze": "all"}, {"unfold": "all"}])
        assert all(marks(value).frozen for value in model.graph.initializers.values())

    def test_statistics_are_those_of_all_classes(self, tmp_path: Path) -> None:
        model = parse("(float[N,3,10,10] x) => (float[N,6,A,B] y)", *BODIES["bias"])
        image = IMAGE + np.repeat([0, 5], 20).astype(np.float32).reshape(-1, 1, 1, 1)  # one class after the other
        before = run(model, image)[0]
        np.savez(tmp_path / "d.npz", x=image, y=np.repeat([0, 1], 20))
        Unfold("all", data=str(tmp_path / "d.npz"), examples=20)(model)
        norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
        np.testing.assert_allclose(norm.inputs[2].const_value.numpy(), before.mean((0, 2, 3)), rtol=0.2)  # type: ignore[union-attr]

    def test_models_of_a_fixed_batch(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=IMAGE, y=np.zeros(len(IMAGE), np.int64))
        means = []
        for batch in ("N", "3"):
            model = parse(f"(float[{batch},3,10,10] x) => (float[{batch},6,A,B] y)", *BODIES["bias"])
            Unfold("all", data=str(tmp_path / "d.npz"), examples=39)(model)
            norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
            means.append(norm.inputs[2].const_value.numpy())  # type: ignore[union-attr]
        np.testing.assert_allclose(*means, rtol=1e-5)
        model = parse("(float[41,3,10,10] x) => (float[41,6,A,B] y)", *BODIES["bias"])
        with pytest.raises(SurgeryError, match="takes 41 examples at a time"):
            Unfold("all", data=str(tmp_path / "d.npz"))(model)

    def test_old_operator_sets(self) -> None:
        with pytest.raises(SurgeryError, match="operator set 9 a Gemm must have a bias"):
            Unfold("a")(mlp(9))


NAMES = ["cat", "dog", "cart", "car"]


def classifier(end: str = "y = Softmax(b)", opset: int = 17) -> ir.Model:
    model = parse(
        "(float[N,8] x) => (float[N,4] y)", f"b = Gemm<transB = 1>(x, w, c) {end}", {"w": [4, 8], "c": [4]}, opset
    )
    set_labels(model, "y", NAMES)
    return model


class TestMergeLabels:
    @pytest.mark.parametrize("opset", [9, 13, 17, 18])
    @pytest.mark.parametrize(
        ("fields", "names", "groups"),
        [
            ({"groups": {"pet": ["cat", "dog"]}}, ["pet", "cart", "car"], [[0, 1], [2], [3]]),
            ({"groups": {"pet": ["dog", "cat"], "vehicle": ["car*"]}}, ["pet", "vehicle"], [[0, 1], [2, 3]]),
            ({"groups": {"dog": ["dog"]}, "rest": "other"}, ["other", "dog"], [[0, 2, 3], [1]]),
            ({"groups": {"cat": ["cat", "car"]}}, ["cat", "dog", "cart"], [[0, 3], [1], [2]]),
        ],
    )
    def test_probabilities_are_summed(
        self, fields: dict[str, Any], names: list[str], groups: list[list[int]], opset: int
    ) -> None:
        model = classifier(opset=opset)
        before = run(model, ROW)[0]
        assert MergeLabels(**fields)(model).changes
        after = run(model, ROW)[0]
        np.testing.assert_allclose(after, np.stack([before[:, g].sum(1) for g in groups], 1), rtol=1e-5, atol=1e-7)
        assert labels(model, "y") == names
        assert model.graph.outputs[0].shape == ir.Shape(["N", len(groups)])
        assert next(reversed(model.graph)).op_type == "Softmax"
        assert not MergeLabels(**fields)(model).changes

    def test_scores_and_log_probabilities(self) -> None:
        scores, logs = classifier("y = Identity(b)"), classifier("y = LogSoftmax(b)")
        apply(scores, [{"remove": "y"}])
        before, probabilities = run(scores, ROW)[0], np.exp(run(logs, ROW)[0])
        for model in (scores, logs):
            apply(model, [{"merge_labels": {"pet": ["cat", "dog"]}}])
        expected = np.log(np.exp(before[:, :2].astype(np.float64)).sum(1))
        np.testing.assert_allclose(run(scores, ROW)[0][:, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(run(scores, ROW)[0][:, 1:], before[:, 2:], rtol=1e-6)
        np.testing.assert_allclose(np.exp(run(logs, ROW)[0][:, 0]), probabilities[:, :2].sum(1), rtol=1e-5)

    def test_large_scores_do_not_overflow(self) -> None:
        model = classifier()
        before = run(model, ROW * 1000)[0]
        apply(model, [{"merge_labels": {"pet": ["cat", "dog"]}}])
        after = run(model, ROW * 1000)[0]
        np.testing.assert_allclose(after[:, 0], before[:, :2].sum(1), atol=1e-6)

    def test_only_a_star_stands_for_anything(self) -> None:
        model = classifier()
        set_labels(model, "y", ["cat [1]", "cat 1", "what?", "whats"])
        apply(model, [{"merge_labels": {"pet": ["cat [1]"], "question": ["what?"]}}])
        assert labels(model, "y") == ["pet", "cat 1", "question", "whats"]

    def test_another_output_of_the_scores_is_not_merged_unseen(self) -> None:
        signature = "(float[N,8] x) => (float[N,4] b, float[N,4] y)"
        model = parse(signature, "b = Gemm<transB = 1>(x, w, c) y = Softmax(b)", {"w": [4, 8], "c": [4]})
        set_labels(model, "y", NAMES)
        with pytest.raises(SurgeryError, match="output 'b' is made from the same scores as 'y'"):
            MergeLabels({"pet": ["cat", "dog"]}, output="y")(model)

    def test_maps_of_classes(self) -> None:
        signature = "(float[N,3,5,5] x) => (float[N,4,5,5] y)"
        model = parse(signature, "b = Conv(x, w) y = Softmax<axis = 1>(b)", {"w": [4, 3, 1, 1]})
        set_labels(model, "y", NAMES)
        image = IMAGE[:, :, :5, :5]
        before = run(model, image)[0]
        apply(model, [{"merge_labels": {"pet": ["cat", "dog"]}}])
        np.testing.assert_allclose(run(model, image)[0][:, 0], before[:, :2].sum(1), rtol=1e-5)

    @pytest.mark.parametrize(
        ("model", "groups", "message"),
        [
            (mlp, {"a": ["b"]}, "has no labels"),
            (classifier, {"pet": ["cta"]}, "no label 'cta'; did you mean 'cat'"),
            (classifier, {"cat": ["cat", "dog", "crat"]}, "no label 'crat'; did you mean"),
            (classifier, {"pet": ["cat"], "animal": ["c*"]}, "is in two groups"),
            (classifier, {"dog": ["cat", "car"]}, "would be there twice"),
            (lambda: classifier("y = Sigmoid(b)"), {"pet": ["cat", "dog"]}, "Sigmoid 'y' makes output 'y'"),
            (lambda: classifier("s = Softmax(b) y = Flatten(s)"), {"pet": ["cat", "dog"]}, "Softmax 's' makes output"),
            (lambda: classifier(opset=8), {"pet": ["cat", "dog"]}, "needs operator set 9"),
        ],
    )
    def test_faults(self, model: Any, groups: dict[str, list[str]], message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            MergeLabels(groups)(model())
