"""Passes that change sizes: set_batch, set_input_size, to_fully_convolutional."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from converters import convert
from surgery.errors import SurgeryError
from surgery.layers import find_layer, layers
from surgery.marks import Preprocessing, marks, preprocessing, set_marks, set_preprocessing
from surgery.passes import MaxNorm, ReplaceHead, SetBatch, SetInputSize, ToFullyConvolutional
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of

RANDOM = np.random.default_rng(1)


def fixed(reshape: str = "s = Constant<value_ints = [1, 180]>() f = Reshape(p, s)", batch: str = "1") -> ir.Model:
    """A network for one image of 14 × 14, which names sizes in a Reshape."""
    model = parse(
        f"(float[{batch},3,14,14] x) => (float[{batch},4] y)",
        f"c = Conv(x, w1, b1) r = Relu(c) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) {reshape} "
        "a = Gemm<transB = 1>(f, a__weight, a__bias) ra = Relu(a) d = Dropout(ra) h = MatMul(d, w3) l = Add(h, b3) "
        "y = Softmax(l)",
        {
            "w1": [5, 3, 3, 3],
            "b1": [5],
            "a.weight": [6, 180],
            "a.bias": [6],
            "w3": [6, 4],
            "b3": [4],
        },
    )
    for value in model.graph.initializers.values():  # so that the softmax is not saturated
        value.const_value = ir.tensor(0.1 * value.const_value.numpy(), name=value.name)
    return model


IMAGES = RANDOM.normal(size=(3, 3, 14, 14)).astype(np.float32)


class TestSetBatch:
    @pytest.mark.parametrize(
        "reshape",
        [
            "s = Constant<value_ints = [1, 180]>() f = Reshape(p, s)",
            "s = Constant<value_ints = [1, -1]>() f = Reshape(p, s)",
            "s = Constant<value_ints = [-1, 180]>() f = Reshape(p, s)",
            "s = Constant<value_ints = [0, 180]>() f = Reshape(p, s)",
            "f = Flatten(p)",
            "s = Constant<value_ints = [1, 5, 36]>() q = Reshape(p, s) f = Flatten(q)",
        ],
    )
    def test_one_image_at_a_time_gives_the_same_as_all(self, reshape: str) -> None:
        model = fixed(reshape)
        expected = np.concatenate([run(model, IMAGES[i : i + 1])[0] for i in range(3)])
        for size in (3, "N"):
            changed = model.clone()
            changes = SetBatch(size=size)(changed).changes
            assert [str(c) for c in changes] == [f"x: [1,3,14,14] → [{size},3,14,14]"]
            np.testing.assert_allclose(run(changed, IMAGES)[0], expected, rtol=1e-5)
            assert changed.graph.outputs[0].shape == ir.Shape([size, 4])
            assert not SetBatch(size=size)(changed).changes

    def test_from_any_number_to_one(self) -> None:
        model = cnn()
        SetBatch(size=1)(model)
        assert model.graph.node("c1").outputs[0].shape == ir.Shape([1, 4, 8, 8])
        assert model.graph.outputs[0].shape == ir.Shape([1, 6])

    def test_another_axis(self) -> None:
        model = parse("(float[T,1,8] x) => (float[T,1,5] y)", "y = MatMul(x, w)", {"w": [8, 5]})
        SetBatch(size="N", axis=1)(model)
        assert run(model, np.ones((2, 4, 8), np.float32))[0].shape == (2, 4, 5)

    def test_an_input_without_that_axis(self) -> None:
        model = parse("(float x, float[N] z) => (float[N] y)", "y = Add(x, z)", {})
        with pytest.raises(SurgeryError, match=r"input 'x' of shape .* has no axis 0"):
            SetBatch(size=2)(model)


class TestSetInputSize:
    def test_shapes_behind_follow(self) -> None:
        model = squeezenet()
        changes = SetInputSize(size=[12, 15])(model).changes
        assert [str(c) for c in changes] == ["x: [N,3,9,9] → [N,3,12,15]"]
        assert model.graph.node("r1").outputs[0].shape == ir.Shape(["N", 7, 10, 13])
        assert run(model, np.ones((2, 3, 12, 15), np.float32))[0].shape == (2, 10)
        assert not SetInputSize(size=[12, 15])(model).changes

    def test_preprocessing_follows(self) -> None:
        model = squeezenet()
        set_preprocessing(model, "x", Preprocessing(size=(9, 9), scale=0.5))
        SetInputSize(size=12)(model)
        assert preprocessing(model, "x") == Preprocessing(size=(12, 12), scale=0.5)

    def test_channels_last(self) -> None:
        model = parse(
            "(float[N,9,9,3] x) => (float[N,5,9,9] y)",
            "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w)",
            {"w": [5, 3, 1, 1]},
        )
        set_preprocessing(model, "x", Preprocessing(layout="NHWC"))
        SetInputSize(size=[6, 7])(model)
        assert run(model, np.ones((1, 6, 7, 3), np.float32))[0].shape == (1, 5, 6, 7)

    @pytest.mark.parametrize("reshape", ["f = Flatten(p)", "s = Constant<value_ints = [-1, 180]>() f = Reshape(p, s)"])
    def test_fully_connected_layers_get_new_weights_only_if_asked(self, reshape: str) -> None:
        model = fixed(reshape, "N")
        set_marks(model.graph.initializers["a.weight"], learning_rate=2)
        with pytest.raises(SurgeryError, match="Gemm 'a' takes 180 inputs and would be given 405"):
            SetInputSize(size=20)(model.clone())
        bias = weights_of(model)["a.bias"]
        changes = SetInputSize(size=20, new_weights=True)(model).changes
        assert [str(c) for c in changes] == [
            "x: [N,3,14,14] → [N,3,20,20]",
            "a: new weights for 405 inputs instead of 180",
        ]
        assert run(model, np.ones((2, 3, 20, 20), np.float32))[0].shape == (2, 4)
        np.testing.assert_array_equal(weights_of(model)["a.bias"], bias)
        assert marks(model.graph.initializers["a.weight"]).learning_rate == 2

    def test_which_input(self) -> None:
        with pytest.raises(SurgeryError, match="0 inputs could be images"):
            SetInputSize(size=5)(mlp())

    def test_too_small(self) -> None:
        with pytest.raises(SurgeryError, match="too small: Conv 'c1'"):
            SetInputSize(size=1)(squeezenet())


class TestToFullyConvolutional:
    @pytest.mark.parametrize("reshape", ["f = Flatten(p)", "s = Constant<value_ints = [-1, 180]>() f = Reshape(p, s)"])
    def test_equals_the_network_moved_over_the_image(self, reshape: str) -> None:
        """On an image of another size, each place of the map is what the old network says of that part of it."""
        old, model = fixed(reshape, "N"), fixed(reshape, "N")
        set_marks(model.graph.initializers["a.weight"], trainable=False)
        changes = ToFullyConvolutional()(model).changes
        assert [str(c) for c in changes] == [
            "a: Gemm → Conv of size 6 × 6",
            "h: MatMul → Conv of size 1 × 1",
        ]
        (before,) = run(old, IMAGES)
        (after,) = run(model, IMAGES)
        assert after.shape == (3, 4, 1, 1)
        np.testing.assert_allclose(after[:, :, 0, 0], before, rtol=1e-4)

        SetInputSize(size=[18, 20])(model)
        image = RANDOM.normal(size=(1, 3, 18, 20)).astype(np.float32)
        (scores,) = run(model, image)
        assert scores.shape == (1, 4, 3, 4)
        for i in range(3):
            for j in range(4):
                (expected,) = run(old, np.ascontiguousarray(image[:, :, 2 * i : 2 * i + 14, 2 * j : 2 * j + 14]))
                np.testing.assert_allclose(scores[:, :, i, j], expected, rtol=1e-4)
        assert not marks(find_layer(model, "a").parameters["weight"]).trainable
        assert {n.op_type for n in model.graph} == {"Conv", "Relu", "MaxPool", "Dropout", "Softmax"}
        assert not ToFullyConvolutional()(model).changes
        assert [layer.name for layer in layers(model) if layer.index] == ["c", "a", "h"]

    def test_bounds_go_along_with_the_layout(self) -> None:
        model = fixed("f = Flatten(p)", "N")
        MaxNorm(value=2)(model)
        ToFullyConvolutional()(model)
        assert not MaxNorm(value=2)(model).changes

    def test_slopes_of_prelu_and_normalization_go_by_channel(self) -> None:
        def make() -> ir.Model:
            return parse(
                "(float[N,3,4,4] x) => (float[N,2] y)",
                "f = Flatten(x) d = Dropout(f) a = MatMul(d, w1) p = PRelu(a, s) n = BatchNormalization(p, g, b, m, v) "
                "y = MatMul(n, w2)",
                {"w1": [48, 6], "s": [6], "g": [6], "b": [6], "m": [6], "v": [6], "w2": [6, 2]},
            )

        old, model = make(), make()
        ToFullyConvolutional()(model)
        image = RANDOM.normal(size=(2, 3, 4, 4)).astype(np.float32)
        np.testing.assert_allclose(run(model, image)[0][:, :, 0, 0], run(old, image)[0], rtol=1e-4)

    def test_a_new_head_on_top(self) -> None:
        model = fixed("f = Flatten(p)", "N")
        ToFullyConvolutional()(model)
        SetInputSize(size=20)(model)
        ReplaceHead(units=3)(model)
        np.testing.assert_allclose(run(model, np.ones((1, 3, 20, 20), np.float32))[0].sum(1), 1, rtol=1e-5)

    def test_nothing_to_turn(self) -> None:
        assert not ToFullyConvolutional()(squeezenet("y = Identity(g)", "N,10,1,1")).changes
        with pytest.raises(SurgeryError, match="no fully connected layer stands behind a map"):
            ToFullyConvolutional()(mlp())

    def test_what_works_on_rows(self) -> None:
        model = parse(
            "(float[N,3,4,4] x) => (float[N,10] y)",
            "f = Flatten(x) a = MatMul(f, w) b = MatMul(f, w2) y = Concat<axis = 1>(a, b)",
            {"w": [48, 6], "w2": [48, 4]},
        )
        with pytest.raises(SurgeryError, match="Concat 'y' works on the rows"):
            ToFullyConvolutional()(model)

    def test_operator_sets_without_a_softmax_over_channels(self) -> None:
        model = parse(
            "(float[N,3,4,4] x) => (float[N,6] y)", "f = Flatten(x) a = MatMul(f, w) y = Softmax(a)", {"w": [48, 6]}, 11
        )
        with pytest.raises(SurgeryError, match="needs operator set 13"):
            ToFullyConvolutional()(model)

    def test_our_lenet(self, lenet_files: tuple[Path, Path]) -> None:
        old, model = (convert(lenet_files[0], weights=lenet_files[1]) for _ in range(2))
        ToFullyConvolutional()(model)
        images = RANDOM.uniform(size=(2, 1, 28, 28)).astype(np.float32)
        np.testing.assert_allclose(run(model, images)[0][:, :, 0, 0], run(old, images)[0], rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_caffes_net_surgery(self, shared_data: Path) -> None:
        """The shapes of the layers are those of Caffe's own example, bvlc_caffenet_full_conv.prototxt."""
        zoo = shared_data / "caffe" / "zoo"
        model = convert(zoo / "bvlc_reference_caffenet" / "deploy.prototxt")
        example = convert(zoo / "net_surgery" / "bvlc_caffenet_full_conv.prototxt")
        ToFullyConvolutional()(model)
        image = example.graph.inputs[0].shape
        assert image is not None
        SetInputSize(size=[int(d) for d in list(image)[2:] if isinstance(d, int)])(model)

        def shapes(network: ir.Model) -> dict[str, tuple[list[int], list[int]]]:
            return {
                layer.name.removesuffix("-conv"): (
                    [int(d) for d in layer.parameters["weight"].shape or ()],
                    [int(d) for d in list(layer.output.shape or ())[1:] if isinstance(d, int)],
                )
                for layer in layers(network)
                if "weight" in layer.parameters
            }

        assert shapes(model) == shapes(example)
        assert shapes(model)["fc8"] == ([1000, 4096, 1, 1], [1000, 8, 8])
