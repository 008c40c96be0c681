"""What is damaged, hostile or unknown is refused in one line, with nothing run and little read."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import converters
from converters import convert
from converters.keras.context import Context
from converters.keras.tensor import Tensor
from surgery.errors import SurgeryError
from tests.converters.test_keras_legacy import layer, write

DENSE = {
    "class_name": "Sequential",
    "config": {"name": "net", "layers": [
        layer("InputLayer", "x", batch_shape=[None, 3], dtype="float32"), layer("Dense", "dense", units=2)]},
}  # fmt: skip
ARRAYS = {"dense": [("dense/kernel:0", np.ones((3, 2), np.float32)), ("dense/bias:0", np.ones(2, np.float32))]}


def network(*entries: dict[str, Any], shape: list[int | None] | None = None) -> dict[str, Any]:
    layers = [layer("InputLayer", "x", batch_shape=shape or [None, 6, 6, 3], dtype="float32"), *entries]
    return {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}


def file_of(folder: Path, model: Any = DENSE, weights: Any = None) -> Path:
    return write(folder / "net.h5", model, ARRAYS if weights is None else weights, "2.9.0")


def archive(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "net.keras"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path: Path, match: str, **options: Any) -> None:
    """Converting is refused with one line, soon."""
    start = time.monotonic()
    with pytest.raises(SurgeryError, match=match) as caught:
        convert(path, **options)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30


# Files


@pytest.mark.parametrize("ending", [".h5", ".hdf5", ".keras"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged or not HDF5"),
        (b"hello, world" * 9, "damaged or not HDF5|truncated or not a Keras file"),
    ],
)
def test_files_of_something_else(content: bytes, match: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{ending}"
    path.write_bytes(content)
    refused(path, match)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_pickles_are_not_loaded(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"net{ending}"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "is a Python pickle, which is not read")
    assert not (tmp_path / "pwned").exists()


def test_truncated_files(tmp_path: Path) -> None:
    whole = file_of(tmp_path).read_bytes()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / "cut.h5"
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, "damaged or not HDF5")
    zipped = archive(tmp_path, {"config.json": json.dumps(DENSE).encode(), "model.weights.h5": whole}).read_bytes()
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / "cut.keras"
        path.write_bytes(zipped[: int(len(zipped) * share)])
        refused(path, "truncated or not a Keras file")


def test_archives_that_lack_a_part(tmp_path: Path) -> None:
    refused(archive(tmp_path, {"other": b""}), r"has no config\.json")
    refused(archive(tmp_path, {"config.json": b"{"}), r"config\.json: is not JSON")
    refused(
        archive(tmp_path, {"config.json": b"[1]", "model.weights.h5": file_of(tmp_path).read_bytes()}),
        "its configuration is not one of Keras",
    )
    config = json.dumps(DENSE).encode()
    refused(archive(tmp_path, {"config.json": config}), r"has no model\.weights\.h5")
    refused(archive(tmp_path, {"config.json": config, "model.weights.h5": b"x"}), "damaged or not HDF5")


def test_a_configuration_that_unpacks_to_much(tmp_path: Path) -> None:
    zeros = b"[" + b" " * 2**24
    refused(archive(tmp_path, {"config.json": zeros}, zipfile.ZIP_DEFLATED), r"config\.json would be 16 MB")


def test_weights_that_unpack_to_much(tmp_path: Path) -> None:
    members = {"config.json": json.dumps(DENSE).encode(), "model.weights.h5": bytes(2**24)}
    refused(archive(tmp_path, members, zipfile.ZIP_DEFLATED), r"model\.weights\.h5 would be 16 MB")


def test_an_archive_that_lies_about_its_sizes(tmp_path: Path) -> None:
    """The sizes in the file say little, what is packed is much."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b" " * 2**26) + packer.flush()
    name, declared = b"config.json", 100
    start = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, 0, len(packed), declared, len(name), 0) + name
    entry = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 0, 0, len(packed), declared, len(name), 0, 0, 0, 0, 0, 0
    )
    entry += name
    place = len(start) + len(packed)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(entry), place, 0)
    path = tmp_path / "net.keras"
    path.write_bytes(start + packed + entry + end)
    refused(path, r"config\.json")


def test_json_nested_without_end(tmp_path: Path) -> None:
    config = b'{"class_name": "Sequential", "config": ' + b"[" * 100_000
    (tmp_path / "net.json").write_bytes(config)
    refused(tmp_path / "net.json", "is not JSON that can be read", weights=file_of(tmp_path))


# HDF5


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    secret = file_of(tmp_path).rename(tmp_path / "secret.h5")
    path = file_of(tmp_path)
    for link in (
        h5py.ExternalLink("secret.h5", "/model_weights/dense/dense/kernel:0"),
        h5py.SoftLink("/model_weights/dense/dense/bias:0"),
    ):
        with h5py.File(path, "a") as file:
            del file["model_weights/dense/dense/kernel:0"]
            file["model_weights/dense/dense/kernel:0"] = link
        refused(path, "kernel:0 is a link to elsewhere, which is not followed")
    assert secret.exists()
    with h5py.File(path, "a") as file:
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink("secret.h5", "/model_weights")
    refused(path, "model_weights is a link to elsewhere")


def test_arrays_outside_the_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(24))
    path = file_of(tmp_path)
    with h5py.File(path, "a") as file:
        own = file["model_weights/dense/dense"]
        del own["kernel:0"]
        own.create_dataset("kernel:0", (3, 2), "f4", external=[(str(tmp_path / "raw"), 0, 24)])
    refused(path, "is not an array that the file itself holds")
    with h5py.File(path, "a") as file:
        own = file["model_weights/dense/dense"]
        del own["kernel:0"]
        layout = h5py.VirtualLayout((3, 2), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3, 2))
        own.create_virtual_dataset("kernel:0", layout)
    refused(path, "is not an array that the file itself holds")


def test_arrays_that_declare_much_and_hold_nothing(tmp_path: Path) -> None:
    path = file_of(tmp_path, network(layer("Dense", "dense", units=2**20), shape=[None, 2**20]))
    with h5py.File(path, "a") as file:
        own = file["model_weights/dense/dense"]
        del own["kernel:0"]
        own.create_dataset("kernel:0", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")
    refused(path, "is not an array that the file itself holds")


def test_weights_are_taken_in_order_where_names_are_others(tmp_path: Path) -> None:
    """As Keras does it with the weights of a network that was built anew."""
    path = file_of(tmp_path, weights={"x": [], "dense_7": ARRAYS["dense"]})
    tensor = convert(path).graph.initializers["dense/kernel"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), ARRAYS["dense"][0][1])


def test_weights_of_another_network(tmp_path: Path) -> None:
    kernel, bias = ARRAYS["dense"]
    refused(file_of(tmp_path, weights={"other": [kernel, bias], "more": [bias]}), r"has no 'kernel' for it")
    refused(file_of(tmp_path, weights={"dense": [kernel]}), "has 1 weights for layer 'dense' .* which takes 2")
    small = ("k", np.ones((2, 2), np.float32))
    refused(file_of(tmp_path, weights={"dense": [small, bias]}), "its kernel is 2×2 in .* and must be 3×2")
    texts = ("k", np.array([b"a", b"b"]))
    refused(file_of(tmp_path, weights={"dense": [texts, bias]}), "its kernel is 2 in .* and must be 3×2")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(DENSE)
    refused(tmp_path / "none.h5", "has no Keras weights")
    missing = file_of(tmp_path)
    with h5py.File(missing, "a") as file:
        del file["model_weights/dense/dense/kernel:0"]
    refused(missing, "has no array 'dense/kernel:0'")


# Configurations


def functional(layers: list[dict[str, Any]], outputs: list[Any]) -> dict[str, Any]:
    config = {"name": "net", "layers": layers, "input_layers": [["x", 0, 0]], "output_layers": outputs}
    return {"class_name": "Functional", "config": config}


def node(kind: str, name: str, reads: list[Any], **config: Any) -> dict[str, Any]:
    return layer(kind, name, **config) | {"name": name, "inbound_nodes": [reads] if reads else []}


START = node("InputLayer", "x", [], batch_shape=[None, 3], dtype="float32")


def test_layers_in_a_circle(tmp_path: Path) -> None:
    model = functional(
        [START, node("Add", "a", [["x", 0, 0, {}], ["b", 0, 0, {}]]), node("ReLU", "b", [["a", 0, 0, {}]])],
        [["b", 0, 0]],
    )
    refused(file_of(tmp_path, model), "its layers read each other in a circle, 'a' among them")


@pytest.mark.parametrize(
    ("reads", "outputs", "match"),
    [
        ([["x", 3, 0, {}]], [["a", 0, 0]], "'a' reads call 3 of 'x', which there is not"),
        ([["x", 0, 7, {}]], [["a", 0, 0]], "output 7 of call 0 of 'x' does not exist"),
        ([["y", 0, 0, {}]], [["a", 0, 0]], "'a' reads call 0 of 'y', which there is not"),
        ([["x", 0, 0, {}]], [["a", 0, -1]], "output -1 of call 0 of 'a' does not exist"),
        ([["x", 0, 0, {}]], [["a", 5, 0]], "output 0 of call 5 of 'a' does not exist"),
    ],
)
def test_connections_to_nowhere(reads: Any, outputs: Any, match: str, tmp_path: Path) -> None:
    refused(file_of(tmp_path, functional([START, node("ReLU", "a", reads)], outputs)), match)


def test_models_in_models_without_end(tmp_path: Path) -> None:
    model: Any = layer("ReLU", "relu")
    for depth in range(60):
        model = {"class_name": "Sequential", "config": {"name": f"m{depth}", "layers": [model]}}
    refused(file_of(tmp_path, model), "models in models to a depth of more than 32")


def test_models_that_call_each_other_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty levels would be a billion calls."""
    monkeypatch.setattr("converters.keras.build._MOST_CALLS", 2000)
    inner: Any = None
    for depth in range(30):
        body = node("ReLU", "relu", []) if inner is None else copy.deepcopy(inner)
        body["name"] = "inner"
        body["inbound_nodes"] = [[["x", 0, 0, {}]], [["inner", 0 if inner is None else 1, 0, {}]]]
        last = ["inner", 1 if inner is None else 2, 0]
        inner = functional([START, body], [last]) | {"name": f"level{depth}"}
        inner["config"]["name"] = f"level{depth}"
    refused(file_of(tmp_path, inner), "calls layers more than 2,000 times")


def test_more_layers_than_any_network_has(tmp_path: Path) -> None:
    model = network(*(layer("ReLU", f"r{i}") for i in range(20_001)))
    (tmp_path / "net.json").write_text(json.dumps(model))
    refused(tmp_path / "net.json", "has more than 20,000 layers", weights=file_of(tmp_path))


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (layer("Conv2D", "it", filters=2**40, kernel_size=3), "its kernel is|has no 'kernel'"),
        (layer("Conv2D", "it", filters=-1, kernel_size=3), "filters is -1 and must be a whole number, 1 or more"),
        (layer("Conv2D", "it", filters=1, kernel_size=[3]), r"kernel_size is \[3\] and must be 2 whole numbers"),
        (layer("MaxPooling2D", "it", padding="odd"), "padding is 'odd'; only valid, same"),
        (layer("Conv2D", "it", filters=1, kernel_size=3, data_format="x"), "data_format is 'x'"),
        (layer("MaxPooling2D", "it", pool_size=9), "the input is too small"),
        (layer("UpSampling2D", "it", size=2**30), "more than any machine holds"),
        (layer("Reshape", "it", target_shape=[-1, 7]), "which have other numbers of elements"),
        (layer("Reshape", "it", target_shape=[-1, -1]), "with more than one free size"),
        (layer("BatchNormalization", "it", axis=9), "axis 9 is out of range"),
        (layer("Permute", "it", dims=[1, 1, 1]), "must have each of the axes from 1 to 3 once"),
        (layer("Activation", "it", activation="relv"), "'relv' cannot be converted; did you mean"),
        (layer("Activation", "it", activation={"class_name": ["x"]}), "the activation .* cannot be converted"),
        (layer("LSTM", "it", units=2), "needs an input of 3 dimensions, and has one of 4"),
        (layer("Dropout", "it", rate="often"), "rate is 'often' and must be a number"),
        (layer("Add", "it"), "has 1 inputs"),
        (layer("ZeroPadding2D", "it", padding=[[1, -2], [0, 0]]), "must be two whole numbers for each of 2 axes"),
        (layer("TimeDistributed", "it", layer={"class_name": "LSTM", "config": {"units": 2}}), "cannot|needs|has no"),
        (layer("Bidirectional", "it", layer={"class_name": "Dense", "config": {"units": 2}}), "wraps a Dense"),
        (layer("Wobble", "it"), r"layer 'it' \(Wobble\): cannot be converted.*--custom module:function"),
        (layer("Conv2DD", "it"), "did you mean 'Conv2D'"),
        (layer("TextVectorization", "it"), "cannot be converted"),
    ],
)
def test_arguments_that_cannot_be(entry: dict[str, Any], match: str, tmp_path: Path) -> None:
    refused(file_of(tmp_path, network(entry), {}), f"net.h5: .*({match})")


@pytest.mark.parametrize("shape", [[None, 0], [None, -3], [None, "x", 1.5], "wide", [None, 2**40], [None, True]])
def test_inputs_of_impossible_shape(shape: Any, tmp_path: Path) -> None:
    refused(
        file_of(tmp_path, network(layer("ReLU", "it"), shape=shape), {}), "declares the shape|does not say the shape"
    )


def test_an_input_of_unknown_shape_is_asked_for(tmp_path: Path) -> None:
    model = {"class_name": "Sequential", "config": [layer("Dense", "dense", units=2)]}
    path = file_of(tmp_path, model)
    refused(path, "does not say the shape of 'input'; give it with `shape`")
    assert list(convert(path, shape="3").graph.inputs[0].shape or ()) == ["N", 3]


def test_a_network_that_normalizes_what_nobody_has(tmp_path: Path) -> None:
    for kind, arguments in (
        ("LayerNormalization", {"scale": False, "center": False}),
        ("GroupNormalization", {"groups": 1, "scale": False, "center": False}),
        ("Normalization", {"mean": 1.0, "variance": 1.0}),
    ):
        model = network(layer(kind, "it", **arguments), shape=[None, 2**30])
        refused(file_of(tmp_path, model, {}), "would have 1,073,741,824 numbers")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("Sequence", "is a model of the class Sequence, whose call is Python code"), (None, "of the class None")],
)
def test_models_that_are_code(kind: Any, message: str, tmp_path: Path) -> None:
    refused(file_of(tmp_path, {"class_name": kind, "config": {}}), message)


# Code


def test_lambdas_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import marshal

    monkeypatch.chdir(tmp_path)
    code = base64.b64encode(marshal.dumps(compile("open('pwned', 'w')", "x", "exec"))).decode()
    model = network(layer("Lambda", "it", function=[code, None, None], function_type="lambda"))
    refused(file_of(tmp_path, model, {}), r"layer 'it' \(Lambda\): .* its Python code is never run; supply it with")
    modern = network({"class_name": "Wobble", "module": "os", "registered_name": "system", "config": {"name": "it"}})
    refused(file_of(tmp_path, modern, {}), r"\(Wobble\): cannot be converted")
    assert not (tmp_path / "pwned").exists()


def double(c: Context) -> Tensor:
    factor = c.parameter("0", [3]) if c.layer.type == "Factor" else 2.0
    return c.like(c.x, c.op.Mul(c.x.value, factor))


def test_layers_that_are_not_known_can_be_supplied(tmp_path: Path) -> None:
    from tests.converters.keras_checks import run

    path = file_of(tmp_path, network(layer("Lambda", "it"), shape=[None, 3]), {})
    x = np.ones((2, 3), np.float32)
    for custom in (double, "tests.converters.test_keras_errors:double"):
        np.testing.assert_array_equal(run(convert(path, custom=custom), x)["it"], 2 * x)
    factor = np.array([1, 2, 3], np.float32)
    weighted = network(layer("Factor", "it"), shape=[None, 3])
    path = file_of(tmp_path, weighted, {"it": [("it/w:0", factor)]})
    np.testing.assert_array_equal(run(convert(path, custom=double), x)["it"], factor * x)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/factor/vars/0"] = factor
    path = archive(tmp_path, {"config.json": json.dumps(weighted).encode(), "model.weights.h5": content.getvalue()})
    np.testing.assert_array_equal(run(convert(path, custom=double), x)["it"], factor * x)
    path = file_of(tmp_path, network(layer("Lambda", "it"), shape=[None, 3]), {})
    refused(path, "the function in `custom` returned nothing", custom=lambda c: None)
    refused(path, "has no 'nothing'", custom="tests.converters.test_keras_errors:nothing")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "nhcw"}, "layout is 'nhcw' and must be keras or nchw"),
        ({"batch": 0}, "batch is 0 and must be a whole number"),
        ({"via": "magic"}, "via is 'magic' and must be tf2onnx"),
        ({"shape": "3x"}, "the shape '3x' is not one"),
        ({"seed": 1}, "has no option 'seed'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    refused(file_of(tmp_path), match, **options)


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = file_of(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"needs h5py .*pip install 'onnx-surgery\[keras\]'")


def test_converting_needs_neither_keras_nor_tensorflow(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = file_of(tmp_path)
    code = (
        "import sys\nfor name in ('keras', 'tensorflow', 'torch'): sys.modules[name] = None\n"
        f"import converters\nassert len(converters.convert({str(path)!r}).graph) == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(converters.__file__).parents[1])


def test_a_buffer_is_not_kept_open(tmp_path: Path) -> None:
    """The file may be replaced while its model is in use."""
    path = file_of(tmp_path)
    model = convert(path)
    path.write_bytes(io.BytesIO(bytes(10)).getvalue())
    tensor = model.graph.initializers["dense/kernel"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), ARRAYS["dense"][0][1])


@pytest.mark.parametrize("option", [{"shape": "8x8x3"}, {"batch": 2}, {"layout": "nchw"}, {"custom": "os:getcwd"}])
def test_the_fallback_takes_no_options_that_it_would_ignore(
    option: dict[str, Any], lenet_files: tuple[Path, Path]
) -> None:
    path = lenet_files[0].parent / "formats" / "lenet.keras"
    with pytest.raises(SurgeryError, match=rf"lenet\.keras: --via tf2onnx takes no {next(iter(option))}"):
        convert(path, via="tf2onnx", **option)
