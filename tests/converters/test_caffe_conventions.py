"""Names, shared parameters, multipliers, fillers, which files belong together, custom layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from google.protobuf import text_format

from converters import convert
from converters.caffe import caffe_pb2
from converters.caffe.context import Context
from converters.caffe.fillers import fill
from surgery.errors import SurgeryError
from surgery.marks import marks
from surgery.passes import Unfreeze
from tests.converters.caffe_checks import (
    V2,
    array,
    run,
    write,
    write_net,
)

SHARED = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
            layer { name: "a" type: "InnerProduct" bottom: "x" top: "a"
                    param { name: "w" lr_mult: 0.1 } param { name: "b" }
                    inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 1 } } }
            layer { name: "c" type: "InnerProduct" bottom: "a" top: "c" param { name: "w" } param { name: "b" }
                    inner_product_param { num_output: 3 } }"""


def test_shared_parameters_stay_shared(tmp_path: Path, rng: np.random.Generator) -> None:
    model = convert(write(tmp_path, SHARED))
    assert set(model.graph.initializers) == {"a.weight", "a.bias"}
    assert marks(model.graph.initializers["a.weight"]).learning_rate == 0.1
    x, w = rng.normal(size=(2, 3)).astype(np.float32), array(model, "a.weight")
    np.testing.assert_allclose(run(model, x)["c"], x @ w.T @ w.T, rtol=1e-4)


def test_parameters_of_other_sizes_cannot_be_shared(tmp_path: Path) -> None:
    text = SHARED.replace("num_output: 3 }", "num_output: 4 }")
    with pytest.raises(SurgeryError, match=r"'c'.*4×3.*shares the parameter 'w', which is 3×3"):
        convert(write(tmp_path, text))


def test_a_learning_rate_of_zero_freezes(tmp_path: Path) -> None:
    text = V2.replace("lr_mult: 2", "lr_mult: 0")
    model = convert(write(tmp_path, text))
    assert not marks(model.graph.initializers["conv.bias"]).trainable
    assert marks(model.graph.initializers["conv.weight"]).trainable


def test_unfreeze_undoes_a_learning_rate_of_zero(tmp_path: Path) -> None:
    model = convert(write(tmp_path, V2.replace("lr_mult: 2", "lr_mult: 0")))
    Unfreeze(layers="all")(model)
    assert not any(marks(value).frozen for value in model.graph.initializers.values())


def test_several_inputs_share_the_batch_where_it_is_the_same(tmp_path: Path) -> None:
    text = """input: "data" input: "mask" input: "rois"
              input_shape { dim: 2 dim: 3 } input_shape { dim: 2 dim: 3 } input_shape { dim: 7 dim: 3 }
              layer { name: "s" type: "Eltwise" bottom: "data" bottom: "mask" top: "s" }
              layer { name: "r" type: "ReLU" bottom: "rois" top: "r" }"""
    model = convert(write(tmp_path, text))
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3]", "[N,3]", "[N_rois,3]"]
    fixed = convert(write(tmp_path, text), batch=5)
    assert [str(i.shape) for i in fixed.graph.inputs] == ["[5,3]"] * 3


def test_free_sizes_of_two_inputs_are_their_own(tmp_path: Path) -> None:
    text = """input: "a" input: "b"
              input_shape { dim: 1 dim: 3 dim: 4 dim: 4 } input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }
              layer { name: "c" type: "Crop" bottom: "a" bottom: "b" top: "c" }"""
    model = convert(write(tmp_path, text), shape="a=3x?x?,b=3x?x?")
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3,height,width]", "[N,3,height_b,width_b]"]
    a = np.arange(75, dtype=np.float32).reshape(1, 3, 5, 5)
    np.testing.assert_array_equal(run(model, a, np.zeros((1, 3, 2, 4), np.float32))["c"], a[:, :, :2, :4])


def test_values_have_the_names_of_tops_and_of_layers_in_place(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "first" type: "AbsVal" bottom: "x" top: "y" }
              layer { name: "second" type: "ReLU" bottom: "y" top: "y" }
              layer { name: "side" type: "Power" bottom: "y" top: "z" power_param { scale: 2 } }
              layer { name: "third" type: "Sigmoid" bottom: "y" top: "y" }
              layer { name: "own" type: "BNLL" bottom: "x" top: "x" }"""
    model = convert(write(tmp_path, text))
    assert {str(n.name): n.outputs[0].name for n in model.graph} == {
        "first": "y/first",
        "second": "y/second",
        "side": "z",
        "third": "y",
        "own": "x_2",
    }
    x = np.array([[-1, 0.5, 2]], np.float32)
    found = run(model, x)
    np.testing.assert_allclose(found["z"], 2 * np.abs(x))
    np.testing.assert_allclose(found["y"], 1 / (1 + np.exp(-np.abs(x))), rtol=1e-6)
    np.testing.assert_allclose(found["x_2"], np.log1p(np.exp(x)), rtol=1e-6)


def test_an_output_may_be_another_name_of_an_input(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "s" type: "Split" bottom: "x" top: "a" top: "b" }"""
    x = np.array([[1, 2, 3]], np.float32)
    found = run(convert(write(tmp_path, text)), x)
    np.testing.assert_array_equal(found["a"], x)
    np.testing.assert_array_equal(found["b"], x)


def filler(text: str) -> caffe_pb2.FillerParameter:
    return text_format.Parse(text, caffe_pb2.FillerParameter())


def test_fillers_have_caffes_distributions() -> None:
    shape = (200, 30, 5, 5)
    fan_in, fan_out = 30 * 25, 200 * 25
    values = {text: fill(filler(text), shape, 0, "w") for text in (
        'type: "xavier"', 'type: "xavier" variance_norm: FAN_OUT', 'type: "xavier" variance_norm: AVERAGE',
        'type: "msra"', 'type: "gaussian" mean: 1 std: 0.2', 'type: "uniform" min: -2 max: 3',
        'type: "gaussian" std: 1 sparse: 20', 'type: "positive_unitball"', "value: 0.25",
    )}  # fmt: skip
    x = values['type: "xavier"']
    assert abs(x).max() <= np.sqrt(3 / fan_in)
    np.testing.assert_allclose(x.std(), np.sqrt(1 / fan_in), rtol=0.01)
    np.testing.assert_allclose(values['type: "xavier" variance_norm: FAN_OUT'].std(), np.sqrt(1 / fan_out), rtol=0.01)
    average = values['type: "xavier" variance_norm: AVERAGE'].std()
    np.testing.assert_allclose(average, np.sqrt(2 / (fan_in + fan_out)), rtol=0.01)
    np.testing.assert_allclose(values['type: "msra"'].std(), np.sqrt(2 / fan_in), rtol=0.02)
    gaussian = values['type: "gaussian" mean: 1 std: 0.2']
    np.testing.assert_allclose([gaussian.mean(), gaussian.std()], [1, 0.2], rtol=0.02)
    uniform = values['type: "uniform" min: -2 max: 3']
    np.testing.assert_allclose([uniform.min(), uniform.max(), uniform.mean()], [-2, 3, 0.5], atol=0.02)
    np.testing.assert_allclose((values['type: "gaussian" std: 1 sparse: 20'] != 0).mean(), 20 / 200, rtol=0.05)
    ball = values['type: "positive_unitball"']
    np.testing.assert_allclose(ball.sum((1, 2, 3)), 1, rtol=1e-5)
    assert ball.min() >= 0
    assert (values["value: 0.25"] == 0.25).all()


def test_bilinear_filler_interpolates(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }
              layer { name: "up" type: "Deconvolution" bottom: "x" top: "up"
                      convolution_param { num_output: 1 kernel_size: 4 stride: 2 pad: 1 bias_term: false
                                          weight_filler { type: "bilinear" } } }"""
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    up = run(convert(write(tmp_path, text)), x)["up"][0, 0]
    # Inside, a ramp stays a ramp: half a pixel's step of 1 across and of 4 down.
    np.testing.assert_allclose(np.diff(up[2:6, 2:6], axis=1), 0.5)
    np.testing.assert_allclose(np.diff(up[2:6, 2:6], axis=0), 2.0)


def test_a_net_without_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(write(tmp_path, V2))
    assert "no weights lie next to it" in caplog.text


def test_fillers_go_by_the_seed_and_the_layer(tmp_path: Path) -> None:
    path = write(tmp_path, V2)
    first, again, other = (array(convert(path, seed=s), "conv.weight") for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    shorter = write(tmp_path, V2[: V2.index('layer { name: "ip"')], "short.prototxt")
    np.testing.assert_array_equal(array(convert(shorter, seed=1), "conv.weight"), first)


def test_new_layers_start_from_their_fillers_with_a_warning(
    lenet_files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = lenet_files[0].read_text().replace('name: "ip2"', 'name: "new"')
    model = convert(write(tmp_path, text), weights=lenet_files[1])
    assert "has no weights for new" in caplog.text
    np.testing.assert_array_equal(array(model, "conv1.weight"), array(convert(lenet_files[0]), "conv1.weight"))
    assert array(model, "new.weight").std() > 0


def test_partners_are_found(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    definition, weights = lenet_files
    expected = array(convert(definition), "conv1.weight")
    for names in (
        ("a.prototxt", "a.caffemodel"),
        ("a_deploy.prototxt", "a.caffemodel"),
        ("deploy.prototxt", "x.caffemodel"),
    ):
        folder = tmp_path / names[0]
        folder.mkdir()
        shutil.copy(definition, folder / names[0])
        shutil.copy(weights, folder / names[1])
        write(folder, "base_lr: 1", "solver.prototxt")
        write(folder, V2, "train_val.prototxt")
        for source in (folder, folder / names[0], folder / names[1]):
            np.testing.assert_array_equal(array(convert(source), "conv1.weight"), expected)


def test_other_networks_weights_are_not_taken(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(lenet_files[1], tmp_path / f"{name}.caffemodel")
    shutil.copy(lenet_files[0], tmp_path / "c.prototxt")
    model = convert(tmp_path / "c.prototxt")
    assert (array(model, "conv1.weight") != array(convert(lenet_files[0]), "conv1.weight")).any()


def test_hdf5_weights(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    model = convert(lenet_files[0])
    definition = shutil.copy(lenet_files[0], tmp_path / "net.prototxt")
    with h5py.File(tmp_path / "net.caffemodel.h5", "w") as file:
        for layer in ("conv1", "conv2", "ip1", "ip2"):
            for index, role in enumerate(("weight", "bias")):
                file[f"data/{layer}/{index}"] = array(model, f"{layer}.{role}")
        file.create_group("data/pool1")
    for source in (definition, tmp_path):
        np.testing.assert_array_equal(array(convert(source), "ip2.weight"), array(model, "ip2.weight"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones((20, 1, 5, 5))
    with h5py.File(tmp_path / "net.caffemodel.h5", "a") as file:
        del file["data/conv1/0"]
        file["data/conv1/0"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(SurgeryError, match="of its own"):
        convert(definition)


CUSTOM = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
            layer { name: "odd" type: "TimesAll" bottom: "x" top: "odd"
                    times_param { factor: 3.5 more { factor: 2 } } }"""


def times_all(c: Context) -> ir.Value:
    """A layer type for the tests."""
    param = c.fields["times_param"]
    return c.op.Mul(c.x, param["factor"] * param["more"]["factor"])


def test_custom_layers(tmp_path: Path) -> None:
    path = write(tmp_path, CUSTOM)
    x = np.array([[1, 2, 3]], np.float32)
    for custom in (times_all, f"{__name__}:times_all"):
        model = convert(path, custom=custom)
        np.testing.assert_allclose(run(model, x)["odd"], 7 * x)
        assert [n.name for n in model.graph] == ["odd"]
    with pytest.raises(SurgeryError, match=r"net\.prototxt.*3:21.*times_param"):
        convert(path)
    with pytest.raises(SurgeryError, match=r"'odd' \(TimesAll\).*--custom"):
        convert(write(tmp_path, CUSTOM[: CUSTOM.index("times_param")] + "}"))
    with pytest.raises(SurgeryError, match=r"field 'input_param\.size'"):
        convert(write(tmp_path, CUSTOM.replace("shape {", "size: 2 shape {", 1)), custom=times_all)
    with pytest.raises(SurgeryError, match="returned nothing"):
        convert(write(tmp_path, CUSTOM), custom=lambda c: None)


def test_a_forks_data_layer_may_have_fields_of_its_own(tmp_path: Path) -> None:
    text = """layer { name: "d" type: "AnnotatedData" top: "data" top: "label" annotated_data_param { batch: 3 }
                      transform_param { crop_size: 4 resize_param { height: 9 } } }
              layer { name: "odd" type: "Odd" bottom: "data" bottom: "label" top: "odd" }"""
    model = convert(write(tmp_path, text), custom=lambda c: c.op.Abs(c.x))
    assert [str(i.shape) for i in model.graph.inputs] == ["[N,3,4,4]"]
    assert [o.name for o in model.graph.outputs] == ["odd"]


def test_custom_modules_lie_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers_of_mine.py").write_text("def convert(c):\n    return c.op.Neg(c.x)\n")
    (tmp_path / "broken_layers_of_mine.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    model = convert(write(tmp_path, CUSTOM), custom="layers_of_mine:convert")
    assert [n.op_type for n in model.graph] == ["Neg"]
    with pytest.raises(SurgeryError, match="cannot be imported"):
        convert(tmp_path / "net.prototxt", custom="broken_layers_of_mine:convert")


@pytest.mark.parametrize(("custom", "message"), [
    ("nonsense", "module:function"),
    ("no_such_module_here:f", "cannot be imported"),
    ("math:no_such_function", "has no"),
    ("math:pi", "not a function"),
])  # fmt: skip
def test_custom_that_is_none(tmp_path: Path, custom: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        convert(write(tmp_path, CUSTOM), custom=custom)


def test_what_a_loss_makes_can_be_silenced_but_not_used(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" top: "label" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "loss" }
              layer { name: "quiet" type: "Silence" bottom: "loss" }"""
    assert [o.name for o in convert(write(tmp_path, text)).graph.outputs] == ["prob"]
    with pytest.raises(SurgeryError, match="'loss' is a loss or a measure"):
        convert(write(tmp_path, text.replace("Silence", "AbsVal")))


def test_two_layers_may_have_one_name(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
              layer { name: "a" type: "ReLU" bottom: "x" top: "y" }
              layer { name: "a" type: "InnerProduct" bottom: "y" top: "z"
                      inner_product_param { num_output: 2 axis: 0 } }
              layer { name: "a" type: "InnerProduct" bottom: "y" top: "u"
                      inner_product_param { num_output: 2 axis: 0 } }"""
    model = convert(write(tmp_path, text), batch=1)
    names = [str(n.name) for n in model.graph]
    assert {"a", "a_2", "a_3"} <= set(names)
    assert len(set(names)) == len(names)
    assert set(model.graph.initializers) > {"a.weight", "a.weight_2"}


def test_write_net_is_read(tmp_path: Path) -> None:
    definition, weights = write_net(tmp_path, "", {"x": (1, 2)})
    assert weights is None
    with pytest.raises(SurgeryError, match="no output"):
        convert(definition)
