"""Damaged, wrong and hostile Caffe files: one clear line, quickly, and without taking the machine's memory."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters import convert
from converters.caffe import caffe_pb2
from converters.caffe.fields import parse_fields
from converters.caffe.wire import scan
from surgery.errors import SurgeryError
from tests.converters.caffe_checks import IMAGE, INPUT, IP, binary, write


@pytest.fixture(autouse=True)
def in_bounded_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\x00\x01\x02\x03", "is binary"),
    (b"layer { name: ", "not a Caffe net definition"),
    (b"<html><body>404</body></html>", "not a Caffe net definition"),
    (b'base_lr: 0.1 lr_policy: "fixed"', "it is a solver"),
    (b'name: "empty"', "has no layers"),
    ("\ufefflayer { name: }".encode(), "1:15"),  # a byte order mark is none of the text
    (b'layer { name: "x" tpye: "Input" }', r'1:19.*"tpye"'),
])  # fmt: skip
def test_files_that_are_no_definition(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(content)
    with pytest.raises(SurgeryError, match=message) as error:
        convert(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
    (b"layer { name: 'x' }", "not a caffemodel"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5|h5py"),
    (b"PK\x03\x04" + bytes(100), "not a caffemodel"),
    (caffe_pb2.BlobProto(num=1, channels=2, height=1, width=1, data=[1, 2]).SerializeToString(), "not a caffemodel"),
    (b"\x0a\x04name", "has no layers"),
])  # fmt: skip
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    definition, weights = write(tmp_path, IP), tmp_path / "net.caffemodel"
    weights.write_bytes(content)
    for source in (definition, weights):
        with pytest.raises(SurgeryError, match=message) as error:
            convert(source)
        assert str(weights) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_caffemodel_cut_off_anywhere_is_refused(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = lenet_files[1].read_bytes()
    definition = write(tmp_path, lenet_files[0].read_text(), "lenet.prototxt")
    weights = tmp_path / "lenet.caffemodel"
    refused = 0
    for length in [*range(1, 200, 7), *range(200, len(whole), 12345), len(whole) - 1]:
        weights.write_bytes(whole[:length])
        try:
            convert(definition)
        except SurgeryError as error:
            refused += 1
            assert str(weights) in str(error)  # noqa: PT017
        else:
            net, _ = scan(weights)  # cut between two layers, the last ones of which have no weights
            assert net.layer[-1].name
    assert refused > 100


def test_weights_of_other_shapes_are_named(tmp_path: Path) -> None:
    definition = write(tmp_path, IP)
    (tmp_path / "net.caffemodel").write_bytes(binary(IP, {"ip": [([5, 3], 15), ([4], 4)]}))
    with pytest.raises(SurgeryError, match=r"layer 'ip' \(InnerProduct\): blob 0 \(weight\) is 5×3 in .* 4×3"):
        convert(definition)
    (tmp_path / "net.caffemodel").write_bytes(binary(IP, {"ip": [([4, 3], 12)]}))
    with pytest.raises(SurgeryError, match=r"'ip'.*needs blob 1 \(bias, 4\)"):
        convert(definition)


def test_more_blobs_than_a_layer_has_are_refused(tmp_path: Path) -> None:
    definition = write(tmp_path, IP.replace("num_output: 4", "num_output: 4 bias_term: false"))
    (tmp_path / "net.caffemodel").write_bytes(binary(IP, {"ip": [([4, 3], 12), ([4], 4)]}))
    with pytest.raises(SurgeryError, match=r"'ip'.*2 blobs.*takes 1"):
        convert(definition)


def test_weights_of_another_network_are_refused(lenet_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"none of the layers.*another network"):
        convert(write(tmp_path, IP), weights=lenet_files[1])


@pytest.mark.parametrize(("shape", "count"), [([4, 3], 11), ([4, 3], 0), ([-4, -3], 12), ([2**40, 2**40], 4)])
def test_blobs_that_hold_less_than_they_declare(tmp_path: Path, shape: list[int], count: int) -> None:
    definition = write(tmp_path, IP)
    (tmp_path / "net.caffemodel").write_bytes(binary(IP, {"ip": [(shape, count)]}))
    with pytest.raises(SurgeryError, match=f"holds {count} numbers"):
        convert(definition)


@pytest.mark.parametrize(("text", "message"), [
    # A net must be in the order in which it runs, so it cannot be a circle.
    (IMAGE + 'layer { name: "a" type: "Eltwise" bottom: "x" bottom: "b" top: "a" }'
     'layer { name: "b" type: "ReLU" bottom: "a" top: "b" }', "'b' is made only later, by layer 'b'"),
    (IMAGE + 'layer { name: "a" type: "ReLU" bottom: "a" top: "a" }', "'a' is made only later"),
    (IMAGE + 'layer { name: "a" type: "ReLU" bottom: "y" top: "a" }', "'y' is made by no layer"),
    (IMAGE + 'layer { name: "a" type: "ReLu" bottom: "x" top: "a" }', r"\(ReLu\).*did you mean 'ReLU'"),
    (IMAGE + 'layer { name: "a" type: "Python" bottom: "x" top: "a" python_param { module: "os" layer: "system" } }',
     r"\(Python\).*--custom"),
    (INPUT.format("dim: 1 dim: 0"), "declares the shape 1×0"),
    (INPUT.format("dim: 1 dim: -3"), "declares the shape"),
    (INPUT.format("dim: 1 dim: 9223372036854775807"), "declares the shape"),
    ('input: "x" input_dim: 1 input_dim: 3', "4 input_dim or one input_shape"),
    ('layer { name: "x" type: "Input" top: "x" }', "does not say the shape"),
    ('layer { name: "a" } layers { name: "b" }', "two formats"),
    ('layers { layer { name: "a" type: "frobnicate" } }', "'frobnicate'"),
    ('layers { layer { name: "a" type: "relu" num_output: 3 } }', "no parameter 'num_output'"),
])  # fmt: skip
def test_nets_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message) as error:
        convert(write(tmp_path, text))
    assert "\n" not in str(error.value)


BAD_LAYERS = [
    ("Convolution", "convolution_param { num_output: 4 }", "kernel_size"),
    ("Convolution", "convolution_param { kernel_size: 3 }", "num_output"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 9 }", "too small"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 0 }", "stride"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 }", "groups"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3 }", "both"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: [3, 3, 3] }", "3 kernel_size"),
    ("Convolution", "convolution_param { num_output: 4294967295 kernel_size: 7 }", "parameters to fill"),
    ("Convolution", 'convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xaver" } }', "'xavier'"),
    ("Deconvolution", "convolution_param { num_output: 1 kernel_size: 2 stride: 4000000000 }", "any machine"),
    ("Pooling", "pooling_param { pool: MAX }", "kernel_size"),
    ("Pooling", "pooling_param { kernel_size: 2 pad: 2 }", "padding"),
    ("Pooling", "pooling_param { kernel_size: 12 }", "does not fit"),
    ("InnerProduct", "inner_product_param { axis: 1 }", "num_output"),
    ("InnerProduct", "inner_product_param { num_output: 4000000000 }", "parameters to fill"),
    ("InnerProduct", "inner_product_param { num_output: 4 axis: 5 }", "out of range"),
    ("Embed", "embed_param { num_output: 4 input_dim: 4000000000 }", "parameters to fill"),
    ("LRN", "lrn_param { local_size: 4 }", "odd"),
    ("Tile", "tile_param { axis: 1 tiles: 2000000000 } ", None),
    ("Tile", "tile_param { axis: 1 tiles: -1 }", "1 or more"),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 7 } }", "192 numbers are not 7"),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }", "do not divide"),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: -1 } }", "-1 may stand once"),
    ("Reshape", "reshape_param { shape { dim: 3 dim: 64 } }", "`batch`"),
    ("InnerProduct", "inner_product_param { num_output: 4 axis: 0 }", "`batch`"),
    ("Slice", "slice_param { slice_point: 5 }", "tops"),
    ("Permute", "permute_param { order: 0 order: 0 }", "not one of 4 axes"),
    ("Permute", "permute_param { order: 7 }", "not one of 4 axes"),
    ("Eltwise", "", "two bottoms"),
    ("Dropout", "dropout_param { dropout_ratio: 1 }", "dropout_ratio"),
    ("Log", "log_param { base: -2 }", "base"),
    ("ArgMax", "argmax_param { top_k: 4 axis: 1 }", "top_k"),
    ("SPP", "spp_param { pyramid_height: 1000000 }", "pyramid_height"),
    ("SPP", "spp_param { pyramid_height: 5 }", "too many"),
    ("Im2col", "convolution_param { kernel_size: 100 pad: 100 }", "too large"),
    ("Interp", "interp_param { height: 2000000000 width: 2000000000 }", "any machine"),
    ("Interp", "", "needs height"),
    ("Upsample", "upsample_param { scale: 2000000000 }", "any machine"),
    ("ShuffleChannel", "shuffle_channel_param { group: 2 }", "groups"),
    ("Flatten", "flatten_param { axis: 2 end_axis: 1 }", "from axis 2 to axis 1"),
    ("Scale", "scale_param { axis: 3 num_axes: 2 }", "covers 2 axes"),
    ("Bias", "bias_param { axis: 9 }", "out of range"),
    ("ReLU", 'top: "b"', "2 tops"),
    ("LSTM", "recurrent_param { num_output: 4 }", "bottoms"),
    ("BatchReindex", "", "bottom"),
    ("Parameter", "parameter_param { shape { dim: 4000000000 } }", "parameters to fill"),
]


@pytest.mark.parametrize(("type", "params", "message"), BAD_LAYERS, ids=[f"{t} {p}" for t, p, _ in BAD_LAYERS])
def test_layers_that_cannot_be(tmp_path: Path, type: str, params: str, message: str | None) -> None:
    bottom = "" if type == "Parameter" else 'bottom: "x"'
    text = IMAGE + f'layer {{ name: "it" type: "{type}" {bottom} top: "a" {params} }}'
    if message is None:  # large, but only when it runs
        convert(write(tmp_path, text))
        return
    with pytest.raises(SurgeryError, match=message) as error:
        convert(write(tmp_path, text))
    assert f"layer 'it' ({type})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sequence_too_long_to_unroll_is_refused(tmp_path: Path) -> None:
    text = """layer { name: "x" type: "Input" top: "x" top: "y" input_param { shape { dim: 1000000 dim: 1 dim: 3 }
                                                                            shape { dim: 1000000 dim: 1 } } }
              layer { name: "it" type: "LSTM" bottom: "x" bottom: "y" top: "a" recurrent_param { num_output: 4 } }"""
    with pytest.raises(SurgeryError, match="too many to unroll"):
        convert(write(tmp_path, text))


def test_millions_of_layers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(b"layer{}" * 2_000_000)
    with pytest.raises(SurgeryError, match="layers"):
        convert(path)
    path.write_bytes(b"a" * 2**25)
    with pytest.raises(SurgeryError, match="too much"):
        convert(path)
    path.write_text(IP)
    (tmp_path / "net.caffemodel").write_bytes(b"\xa2\x06\x00" * 2_000_000)
    with pytest.raises(SurgeryError, match="layers"):
        convert(path)


@pytest.mark.parametrize(("option", "message"), [
    ({"shape": "3x24xy"}, "3x24xy"),
    ({"shape": 2.5}, r"2\.5"),
    ({"shape": [1, None, 28]}, "1xNonex28"),
    ({"custom": 5}, "module:function"),
    ({"shape": {"nothing": [3, 24, 24]}}, "nothing"),
    ({"batch": 0}, "batch"),
    ({"batch": "many"}, "batch"),
    ({"seed": -1}, "seed"),
    ({"sized": 3}, "no option 'sized'"),
])  # fmt: skip
def test_options_that_cannot_be(lenet_files: tuple[Path, Path], option: dict, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        convert(lenet_files[0], **option)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="no converter"):
        convert(tmp_path)
    write(tmp_path, IP, "a.prototxt")
    write(tmp_path, IP, "b.prototxt")
    with pytest.raises(SurgeryError, match=r"a\.prototxt, b\.prototxt"):
        convert(tmp_path)


HOSTILE = [
    ('type: "InnerProduct" bottom: "x" inner_product_param { num_output: 5000000 }', "parameters to fill"),
    (
        'type: "PriorBox" bottom: "x" bottom: "x" prior_box_param { '
        + " ".join(f"min_size: {k} aspect_ratio: {k}.5" for k in range(1, 5000))
        + " }",
        "shapes of boxes",
    ),
    (
        'type: "DetectionOutput" bottom: "x" bottom: "x" bottom: "x" '
        "detection_output_param { num_classes: 2000000000 }",
        "2,000,000,000|locations",
    ),
]


def test_hostile_declarations_take_no_memory(tmp_path: Path) -> None:
    """What is refused is refused before anything of its size is made."""
    for index, (layer, _) in enumerate(HOSTILE):
        write(tmp_path, IMAGE + f'layer {{ name: "it" top: "a" {layer} }}', f"{index}.prototxt")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from converters import convert
from surgery.errors import SurgeryError
import converters.caffe.build, onnx
def peak():  # of this process alone: ru_maxrss begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak()
for index in range({len(HOSTILE)}):
    try:
        convert({str(tmp_path)!r} + f"/{{index}}.prototxt")
    except SurgeryError as error:
        print(error)
print((peak() - before) // 1024, "MiB")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *messages, used = result.stdout.strip().splitlines()
    assert len(messages) == len(HOSTILE)
    for message, (_, expected) in zip(messages, HOSTILE, strict=True):
        assert re.search(expected, message)
    assert int(used.split()[0]) < 100


def test_fields_without_a_schema() -> None:
    text = """a: 1 b: "x" 'y' # a comment
              c { d: 1.5 e: [1, 2] f: TRUE } c < d: -2e3; > g: true, h: 0x10 i: "\\"" """
    assert parse_fields(text) == {
        "a": 1,
        "b": "xy",
        "c": [{"d": 1.5, "e": [1, 2], "f": "TRUE"}, {"d": -2000.0}],
        "g": True,
        "h": 16,
        "i": '"',
    }
    for bad in ("a {", "a: }", "a } b", "a: {" * 100, "a: [1", "\x01"):
        with pytest.raises(SurgeryError):
            parse_fields(bad)
