"""Every conversion is run once, and compared with its own framework where asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import converters
from converters import registry, trial
from converters.compare import Verification
from converters.registry import converter, reference
from converters.trial import NotTriedError, made_up_inputs, try_once
from surgery.errors import SurgeryError
from surgery.io import load
from tests.cli.test_cli import fails, run

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g ({}) => ({}) {}'


def model(inputs: str, outputs: str, body: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT.format(inputs, outputs, body)))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of a framework whose networks double their input, and what says so of them."""
    registry._converters()  # imports what registers itself
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_references", dict(registry._references))

    @converter("Toy", recognizes=lambda path: path.suffix == ".toy")
    def convert_toy(source: Path, *, factor: float = 2.0, hidden: float = 2.0) -> ir.Model:
        text = f"<float f = {{{factor}}}> {{ y = Mul(x, f) z = Neg(x) }}"
        return model("float[N,3] x", "float[N,3] y, float[N,3] z", text)

    return tmp_path / "net.toy"


def verified(toy: Path, function: Any, **options: Any) -> Verification:
    toy.write_text("a network")
    reference("Toy")(function)
    return converters.verify(toy, converters.convert(toy, **options), **options)


def test_outputs_in_order_and_by_name(toy: Path) -> None:
    found = verified(toy, lambda source, inputs: [inputs["x"] * 2, -inputs["x"]])
    assert (found.framework, found.equal, found.absolute, found.relative) == ("Toy", True, 0.0, 0.0)
    assert found.shapes == {"x": (2, 3)}  # any batch, so one of two
    assert found.differences.keys() == {"y", "z"}
    assert verified(toy, lambda source, inputs: {"z": -inputs["x"]}).differences.keys() == {"z"}


def test_what_differs(toy: Path) -> None:
    found = verified(toy, lambda source, inputs: [inputs["x"] * 2.2, -inputs["x"]])
    assert not found.equal
    largest = np.abs(made_up_inputs(converters.convert(toy), batch=2)["x"]).max()
    assert found.absolute == pytest.approx(0.2 * largest, rel=1e-5)
    assert found.relative == pytest.approx(0.2 / 2.2, rel=1e-5)
    assert str(found) == f"compared with Toy on random x 2×3: largest difference {found.absolute:.2g}, relative 0.091"
    nearly = verified(toy, lambda source, inputs: [inputs["x"] * (2 + 1e-6), -inputs["x"]])
    assert nearly.equal
    assert 0 < nearly.relative < 1e-6


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_none(toy: Path, number: float) -> None:
    def run_toy(source: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        y = inputs["x"] * 2
        y[0, 0] = number
        return [y, -inputs["x"]]

    assert verified(toy, run_toy).relative == np.inf


def test_the_same_none_is_no_difference(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(model("float[2,3] x", "float[2,3] y", "{ y = Log(x) }")), tmp_path / "log.onnx")
    found = converters.verify(tmp_path / "log.onnx", converters.convert(tmp_path / "log.onnx"))
    assert found.equal


def test_the_reference_is_given_its_options(toy: Path) -> None:
    def run_toy(source: Path, inputs: dict[str, np.ndarray], *, factor: float = 2.0) -> list[np.ndarray]:
        return [inputs["x"] * factor, -inputs["x"]]

    assert verified(toy, run_toy, factor=3.0, hidden=1.0).equal


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda source, inputs: [inputs["x"] * 2], "Toy computes 1 outputs, the converted model y, z"),
        (lambda source, inputs: {"other": inputs["x"]}, "Toy computes 1 outputs"),
        (lambda source, inputs: [inputs["x"][:, :2], -inputs["x"]], "is [1, 3], and was [1, 2]"),
    ],
)
def test_what_cannot_be_compared(toy: Path, function: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match="the conversion cannot be compared with its source") as raised:
        verified(toy, function)
    assert message in str(raised.value)


def test_a_batch_of_one_where_the_source_has_only_that(toy: Path) -> None:
    def run_toy(source: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [inputs["x"][:1] * 2, -inputs["x"][:1]]

    assert verified(toy, run_toy).shapes == {"x": (1, 3)}


def test_where_only_some_sizes_fit(lenet_files: tuple[Path, Path]) -> None:
    """A Torch7 file does not say its input's size, and its last layers fit one only."""
    path = lenet_files[0].parent / "formats" / "lenet.t7"
    with pytest.raises(SurgeryError, match="if only some sizes fit its input, give one as its shape"):
        converters.verify(path, converters.convert(path))


def test_a_framework_without_a_reference(toy: Path) -> None:
    toy.write_text("a network")
    with pytest.raises(SurgeryError, match="there is nothing to compare a conversion from Toy with"):
        converters.verify(toy, converters.convert(toy))


def test_the_command_line(toy: Path, tmp_path: Path) -> None:
    toy.write_text("a network")
    reference("Toy")(lambda source, inputs: [inputs["x"] * 2, -inputs["x"]])
    target = tmp_path / "toy.onnx"
    words = ["convert", toy, "-o", target, "--verify"]
    assert "compared with Toy on random x 2×3: largest difference 0, relative 0" in run(*words).stdout
    before = target.read_bytes()
    message = fails(*words, "--option", "factor=3", code=1)
    assert "nothing was written" in message
    assert "compared with Toy" in message
    assert target.read_bytes() == before
    data = json.loads(run(*words, "--option", "factor=3", "--json", code=1).stdout)
    assert data["output"] is None
    assert data["verified"]["equal"] is False
    assert data["verified"]["differences"]["z"] == {"absolute": 0.0, "relative": 0.0}
    assert data["verified"]["relative"] == pytest.approx(0.5)
    assert target.read_bytes() == before


def test_caffe_is_compared_with_opencvs_reader(lenet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lenet = converters.convert(lenet_files[0])
    found = converters.verify(lenet_files[0], lenet)
    assert (found.framework, found.equal) == ("Caffe", True)
    assert found.differences.keys() == {"prob"}
    weight = lenet.graph.initializers["conv1.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy()[::-1].copy(), name=weight.name)
    assert not converters.verify(lenet_files[0], lenet).equal
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SurgeryError, match=r"needs cv2 \(.*\): pip install 'onnx-surgery\[caffe-verify\]'"):
        converters.verify(lenet_files[0], lenet)


def test_caffes_weights_alone_and_a_definition_alone(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    definition, weights = tmp_path / "net.prototxt", tmp_path / "other.caffemodel"
    definition.write_bytes(lenet_files[0].read_bytes())
    with pytest.raises(SurgeryError, match="has no weights, so there is nothing to compare"):
        converters.verify(definition, converters.convert(definition))
    definition.unlink()
    weights.write_bytes(lenet_files[1].read_bytes())
    assert converters.verify(weights, converters.convert(weights)).equal


def test_real_caffe_networks(shared_data: Path) -> None:
    for name in ("v1/cifar10_quick", "mtcnn/det1", "mtcnn/det3", "rfb320/RFB-320"):
        source = shared_data / "caffe" / f"{name}.caffemodel"
        assert converters.verify(source, converters.convert(source)).relative < 1e-5, name


def test_a_model_that_cannot_run_is_an_error() -> None:
    bad = model("float[2,3] x, int64[1] s", "float y", "{ r = Reshape(x, s) y = ReduceSum(r) }")
    bad.graph.inputs[1].const_value = ir.tensor(np.array([5], np.int64))
    made = bad.graph.inputs.pop()
    bad.graph.register_initializer(made)
    with pytest.raises(SurgeryError, match=r"net: the converted model does not run \(.*reshape"):
        try_once(bad, Path("net"))


def convolution(channels: int, size: int) -> ir.Model:
    weight = onnx.numpy_helper.from_array(np.zeros((channels, channels, 3, 3), np.float32), "w")
    text = TEXT.format(f"float[1,{channels},{size},{size}] x", "float[1,C,H,W] y", "{ y = Conv(x, w) }")
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(weight)
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: model("float[1,3,100000,100000] x", "float[1,3,100000,100000] y", "{ y = Relu(x) }"), "GB of input"),
        (
            lambda: model("float[30000,1] x", "float[30000,30000] y", "{ t = Transpose<perm=[1,0]>(x) y = Add(x, t) }"),
            "a run takes 3.4 GB",
        ),
        (lambda: convolution(40, 20), "a run takes 5e+06 multiplications"),
        (
            lambda: ir.from_proto(
                onnx.parser.parse_model(
                    '<ir_version: 8, opset_import: ["" : 17, "Acme" : 1]> g (float[2] x) => (float[2] y) '
                    "{ y = Acme.Thing(x) }"
                )
            ),
            "is not a registered function",
        ),
    ],
)
def test_what_takes_too_much_is_not_tried(
    net: Any, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_MOST_PRODUCTS", 1e6)
    try_once(net(), Path("net"))
    assert "net: the converted model was not tried: " in caplog.text
    assert message in caplog.text


def test_a_run_that_goes_on_forever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_MOST_SECONDS", 0.5)
    text = """<int64 n = {9223372036854775807}, bool go = {1}> {
        y = Loop(n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] w) {
            c2 = Identity(c) w = Relu(v) }> }"""
    begin = time.perf_counter()
    with pytest.raises(NotTriedError, match=r"a run takes more than"):
        trial.run(model("float[2] x", "float[2] y", text), {"x": np.ones(2, np.float32)})
    assert time.perf_counter() - begin < 20


def test_made_up_inputs_fit_what_reads_them() -> None:
    both = model(
        "float[N,3,H,W] image, int64[N] index, int32[4] number, bool[2] flag, float16[2] half",
        "float[N,5] row",
        "<float[7,5] table> { row = Gather(table, index) }",
    )
    found = made_up_inputs(both, batch=50, free=9)
    assert found["image"].shape == (50, 3, 9, 9)
    assert (found["index"].min(), found["index"].max()) == (0, 6)
    assert found["number"].dtype == np.int32
    assert (found["flag"].dtype, found["half"].dtype) == (np.dtype(bool), np.dtype(np.float16))
    again = made_up_inputs(both, batch=50, free=9)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_made_up_images_are_prepared(lenet_files: tuple[Path, Path]) -> None:
    """Else a network's last Softmax would have but ones and zeros to compare."""
    found = made_up_inputs(converters.convert(lenet_files[0]), batch=2)["data"]
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (2, 1, 28, 28))
    assert 0 <= found.min() < 0.01 < 0.98 < found.max() < 1


def test_weights_in_other_files_are_run_from_there(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    proto = onnx.parser.parse_model(TEXT.format("float[N,300] x", "float[N,400] y", "{ y = MatMul(x, w) }"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    loaded = load(tmp_path / "net.onnx")
    x = np.ones((2, 300), np.float32)
    np.testing.assert_allclose(trial.run(loaded, {"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-4)
    assert converters.verify(tmp_path / "net.onnx", converters.convert(tmp_path / "net.onnx")).equal


def test_without_a_runtime_a_conversion_is_not_tried(
    lenet_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Any:
        raise SurgeryError("none is installed")

    monkeypatch.setattr(trial, "load_runtime", none)
    with caplog.at_level(logging.WARNING):
        assert len(converters.convert(lenet_files[0]).graph) == 10
    assert not caplog.records
