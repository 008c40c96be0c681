"""fold_batchnorm, insert, attach, run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.layers import layers
from surgery.marks import labels, marks, set_labels, set_marks
from surgery.passes import Attach, Cut, FoldBatchnorm, Insert, PruneOutputs, ReplaceHead, Run, registry
from surgery.recipe import Recipe
from tests.graphs import cnn, mlp, parse, run, weights_of


@pytest.fixture(autouse=True)
def _forget_ones_own() -> Iterator[None]:
    """Passes and modules that tests make up are gone afterwards."""
    known = dict(registry)
    yield
    registry.clear()
    registry.update(known)
    for name in ("my_passes", "my_functions"):
        sys.modules.pop(name, None)


IMAGE = np.random.default_rng(1).normal(size=(2, 3, 10, 10)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


class TestFoldBatchnorm:
    @pytest.mark.parametrize(
        ("body", "weights"),
        [
            ("c = Conv(x, w)", {"w": [6, 3, 3, 3]}),
            ("c = Conv(x, w, bias)", {"w": [6, 3, 3, 3], "bias": [6]}),
            ("d = Conv(x, w) c = Add(d, bias)", {"w": [6, 3, 3, 3], "bias": [6, 1, 1]}),
            ("c = Conv<group = 3>(x, w, bias)", {"w": [6, 1, 3, 3], "bias": [6]}),
            ("c = ConvTranspose(x, w)", {"w": [3, 6, 3, 3]}),
            ("c = ConvTranspose<group = 3>(x, w, bias)", {"w": [3, 2, 3, 3], "bias": [6]}),
            ("f = Flatten(x) c = Gemm(f, w, bias)", {"w": [300, 6], "bias": [6]}),
            ("f = Flatten(x) c = Gemm<transB = 1, alpha = 0.5>(f, w, bias)", {"w": [6, 300], "bias": [6]}),
            ("f = Flatten(x) d = MatMul(f, w) c = Add(d, bias)", {"w": [300, 6], "bias": [6]}),
            ("f = Flatten(x) c = MatMul(f, w)", {"w": [300, 6]}),
        ],
    )
    def test_outputs_stay_the_same(self, body: str, weights: dict[str, list[int]]) -> None:
        model = parse(
            "(float[N,3,10,10] x) => (float[A] y)",
            f"{body} n = BatchNormalization<epsilon = 0.01>(c, g, b, m, v) y = Sigmoid(n)",
            {**weights, "g": [6], "b": [6], "m": [6], "v": [6]},
        )
        model.graph.outputs[0].shape = None
        (before,) = run(model, IMAGE, checked=False)
        (change,) = FoldBatchnorm()(model).changes
        assert str(change).startswith("n: folded into ")
        assert "BatchNormalization" not in {n.op_type for n in model.graph}
        np.testing.assert_allclose(run(model, IMAGE)[0], before, rtol=1e-4, atol=1e-6)
        assert len(weights_of(model)) == 2
        assert not FoldBatchnorm()(model).changes

    def test_the_layers_marks_stay(self) -> None:
        model = cnn()
        set_marks(model.graph.initializers["w2"], learning_rate=0.5)
        (before,) = run(model, IMAGE)
        FoldBatchnorm()(model)
        np.testing.assert_allclose(run(model, IMAGE)[0], before, rtol=1e-4)
        weight = next(layer for layer in layers(model) if layer.name == "c2").parameters["weight"]
        assert marks(weight).learning_rate == 0.5

    def test_only_what_is_right_behind_one_layer(self) -> None:
        model = parse(
            "(float[N,3,10,10] x) => (float[N,6,8,8] y)",
            "c = Conv(x, w) r = Relu(c) y = BatchNormalization(r, g, b, m, v)",
            {"w": [6, 3, 3, 3], "g": [6], "b": [6], "m": [6], "v": [6]},
        )
        assert not FoldBatchnorm()(model).changes

    def test_sequences_are_left_alone(self) -> None:
        model = parse(
            "(float[N,6,8] x) => (float[N,6,6] y)",
            "c = MatMul(x, w) y = BatchNormalization(c, g, b, m, v)",
            {"w": [8, 6], "g": [6], "b": [6], "m": [6], "v": [6]},
        )
        assert not FoldBatchnorm()(model).changes


class TestInsert:
    def test_an_operator_with_attributes(self) -> None:
        model = cnn()
        step = Insert(layers="r1", operator="LRN", attributes={"size": 3, "alpha": 1, "bias": 2.0})
        assert [str(c) for c in step(model).changes] == ["r1: LRN inserted behind it"]
        node = model.graph.node("r1/LRN")
        assert (node.attributes.get_int("size"), node.attributes.get_float("alpha")) == (3, 1.0)
        run(model, IMAGE)
        assert not step(model).changes

    def test_inputs(self) -> None:
        model = mlp()
        plain = mlp()
        plain.graph.outputs[:] = [plain.graph.node("r").outputs[0]]
        Insert(layers="r", operator="Pow", inputs=[2.0], name="squared")(model)
        Insert(layers="r/squared", operator="Reshape", inputs=[[0, -1]])(model)
        Cut(layer="r/squared/Reshape")(model)
        np.testing.assert_allclose(run(model, ROW)[0], run(plain, ROW, checked=False)[0] ** 2, rtol=1e-6)

    def test_behind_the_output(self) -> None:
        model = mlp()
        (before,) = run(model, ROW)
        Insert(layers="y", operator="Log")(model)
        np.testing.assert_allclose(run(model, ROW)[0], np.log(before), rtol=1e-5)
        assert [o.name for o in model.graph.outputs] == ["y"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"operator": "Rleu"}, "operator set 17 has no operator 'Rleu'; did you mean 'Relu'"),
            ({"operator": "Gelu"}, "operator set 17 has no operator 'Gelu'"),
            ({"operator": "LeakyRelu", "attributes": {"alpa": 1}}, "no attribute 'alpa'; did you mean 'alpha'"),
            ({"operator": "Pow"}, "takes 2 to 2 inputs"),
            ({"operator": "Relu", "inputs": [1.0]}, "takes 1 to 1 inputs"),
            ({"operator": "nowhere:function"}, "module 'nowhere' cannot be imported"),
            ({"operator": "math:sin"}, "no onnxscript function"),
            ({"operator": "math:sine"}, "no such name in math; did you mean 'sin'"),
        ],
    )
    def test_refusals(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            Insert(layers="r1", **arguments)(cnn())

    def test_an_onnxscript_function(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_functions.py").write_text(
            "from onnxscript import script\n"
            "from onnxscript import opset17 as op\n"
            "from onnxscript.values import Opset\n\n\n"
            "@script(Opset('my', 1), default_opset=op)\n"
            "def swish(x, beta: float = 1.0):\n"
            "    return x * op.Sigmoid(x * op.CastLike(op.Constant(value_float=beta), x))\n"
        )
        monkeypatch.chdir(tmp_path)
        model = parse("(float[N,8] x) => (float[N,8] y)", "y = MatMul(x, w)", {"w": [8, 8]})
        (before,) = run(model, ROW)
        step = Insert(layers="y", operator="my_functions:swish", attributes={"beta": 2})
        assert step(model).changes
        save(model, tmp_path / "m.onnx")
        again = load(tmp_path / "m.onnx")
        np.testing.assert_allclose(run(again, ROW)[0], before / (1 + np.exp(-2 * before)), rtol=1e-4)
        assert not step(again).changes
        assert str(tmp_path) not in sys.path


class TestAttach:
    @pytest.fixture
    def head(self, tmp_path: Path) -> str:
        """A model whose names are those of the network it is attached to."""
        model = parse(
            "(float[N,6] x) => (float[N,2] y)",
            "b = Gemm(x, b__weight, b__bias) y = Sigmoid(b)",
            {"b.weight": [6, 2], "b.bias": [2]},
            seed=5,
        )
        set_labels(model, "y", ["no", "yes"])
        set_marks(model.graph.initializers["b.weight"], learning_rate=3)
        save(model, tmp_path / "second.onnx")
        return str(tmp_path / "second.onnx")

    def test_two_heads_on_one_backbone(self, head: str) -> None:
        model = mlp()
        (first,) = run(model, ROW)
        features = mlp()
        Cut(layer="r")(features)
        (second,) = run(load(head), run(features, ROW)[0])

        step = Attach(model=head, to="r")
        changes = step(model).changes
        assert [str(c) for c in changes] == [
            f"r: {head} attached: 2 operators",
            "second/y: output added, [N,2]",
        ]
        np.testing.assert_array_equal(run(model, ROW)[0], first)
        np.testing.assert_allclose(run(model, ROW)[1], second, rtol=1e-6)
        assert labels(model, "second/y") == ["no", "yes"]
        assert marks(model.graph.initializers["second/b.weight"]).learning_rate == 3
        assert not step(model).changes
        ReplaceHead(units=5, output="second/y")(model)
        assert run(model, ROW)[1].shape == (3, 5)

    def test_then_only_the_new_one(self, head: str) -> None:
        model = mlp()
        Attach(model=head, to="r", prefix="task")(model)
        PruneOutputs(keep="task/y")(model)
        assert [o.shape for o in run(model, ROW)] == [(3, 2)]
        assert set(weights_of(model)) == {"a.weight", "a.bias", "task/b.weight", "task/b.bias"}

    def test_twice_in_different_places(self, head: str) -> None:
        model = mlp()
        Attach(model=head, to="r")(model)
        Attach(model=head, to="a")(model)
        assert [o.name for o in model.graph.outputs] == ["y", "second/y", "second_2/y"]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        run(model, ROW)

    @pytest.mark.parametrize(
        ("to", "message"),
        [
            ("b", r"input 'x' takes \[N,6\], which 'b' of \[N,4\] does not fit"),
            ("rr", "no layer named 'rr'"),
        ],
    )
    def test_what_does_not_fit(self, head: str, to: str, message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            Attach(model=head, to=to)(mlp())

    def test_another_operator_set(self, head: str) -> None:
        with pytest.raises(SurgeryError, match="has operator set 17, the network 13"):
            Attach(model=head, to="r")(mlp(13))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match="no such file"):
            Attach(model=str(tmp_path / "none.onnx"), to="r")(mlp())

    def test_several_inputs(self, tmp_path: Path) -> None:
        other = parse("(float[N,6] x, float[N,6] z) => (float[N,6] y)", "y = Add(x, z)", {})
        save(other, tmp_path / "sum.onnx")
        with pytest.raises(SurgeryError, match="its inputs are x, z; say which"):
            Attach(model=str(tmp_path / "sum.onnx"), to="r")(mlp())
        model = mlp()
        Attach(model=str(tmp_path / "sum.onnx"), to="r", input="x")(model)
        assert [i.name for i in model.graph.inputs] == ["x", "z"]
        other_row = np.ones((3, 6), np.float32)
        features = mlp()
        Cut(layer="r")(features)
        np.testing.assert_allclose(run(model, ROW, other_row)[1], run(features, ROW)[0] + 1, rtol=1e-6)


class TestRun:
    def test_onnx_irs_own(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "a = Identity(x) y = Relu(a)", {})
        step = Recipe.model_validate({"passes": [{"run": "IdentityEliminationPass"}]}).passes[0]
        assert [str(c) for c in step(model).changes] == ["model: changed by IdentityEliminationPass"]
        assert [n.op_type for n in model.graph] == ["Relu"]
        assert not step(model).changes

    def test_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_passes.py").write_text(
            "from surgery.passes import Change, Pass, pass_dataclass\n"
            "import onnx_ir as ir\n\n\n"
            "@pass_dataclass\n"
            "class Stamp(Pass):\n"
            "    'Writes a word into the model.'\n\n"
            "    word: str\n\n"
            "    def edit(self, model):\n"
            "        model.metadata_props['stamp'] = self.word\n"
            "        yield Change('model', self.word)\n\n\n"
            "class Anew(ir.passes.FunctionalPass):\n"
            "    def call(self, model):\n"
            "        new = model.clone()\n"
            "        new.graph.node('y').op_type = 'Tanh'\n"
            "        return ir.passes.PassResult(new, True)\n\n\n"
            "class Broken(ir.passes.InPlacePass):\n"
            "    def call(self, model):\n"
            "        return 1 / 0\n"
        )
        monkeypatch.chdir(tmp_path)
        model = parse("(float[N,8] x) => (float[N,8] y)", "y = Relu(x)", {})
        changes = Run(target="my_passes:Stamp", options={"word": "hello"})(model).changes
        assert [str(c) for c in changes] == ["model: hello"]
        assert model.metadata_props["stamp"] == "hello"
        Run(target="my_passes:Anew")(model)
        np.testing.assert_allclose(run(model, ROW)[0], np.tanh(ROW), rtol=1e-5)
        with pytest.raises(SurgeryError, match="my_passes:Broken fails: ZeroDivisionError"):
            Run(target="my_passes:Broken")(model)
        with pytest.raises(SurgeryError, match=r"does not take \{'wrod': 'x'\}"):
            Run(target="my_passes:Stamp", options={"wrod": "x"})(model)
        with pytest.raises(SurgeryError, match="no such name in my_passes; did you mean 'Stamp'"):
            Run(target="my_passes:Stmp")(model)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (
                "IdentityElimination",
                "onnx-ir has no pass 'IdentityElimination'; did you mean 'IdentityEliminationPass'",
            ),
            ("collections:OrderedDict", "is no pass"),
            ("nowhere:Thing", "cannot be imported"),
        ],
    )
    def test_refusals(self, target: str, message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            Run(target=target)(cnn())
