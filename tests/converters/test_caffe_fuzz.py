"""Caffe files and layers changed at random are converted or refused, never anything else."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import convert
from converters.caffe import caffe_pb2
from converters.caffe.context import known_types
from surgery.errors import SurgeryError
from tests.converters.caffe_checks import IMAGE, IP, binary, write


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_crash(lenet_files: tuple[Path, Path], tmp_path: Path, data: st.DataObject) -> None:
    """A caffemodel with some bytes changed is read or refused."""
    content = bytearray(binary(IP, {"ip": [([4, 3], 12), ([4], 4)]}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    definition, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    definition.write_text(IP)
    weights.write_bytes(content)
    for source in (definition, weights):
        try:
            convert(source)
        except SurgeryError as error:
            assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_text_never_crashes(lenet_files: tuple[Path, Path], tmp_path: Path, data: st.DataObject) -> None:
    """A definition with some words changed is converted or refused."""
    words = (IMAGE + DEEP).split(" ")
    pool = [*words, "-1", "0", "7", "1e30", "nan", "true", "{", "}", '""', "999999999", "dim:", "MAX"]
    for _ in range(data.draw(st.integers(1, 3))):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(pool))
    path = write(tmp_path, " ".join(words))
    for custom in (None, lambda c: c.x):
        try:
            convert(path, custom=custom)
        except SurgeryError as error:
            assert "\n" not in str(error)  # noqa: PT017


BLOBS = {"x": "1 3 8 8", "y": "1 3 8 8", "v": "2 3", "s": "4", "z": "", "t": "5 2", "u": "5 2 3", "w": "2 2 3 4 5"}
OWNERS = {
    "Deconvolution": "convolution_param",
    "DepthwiseConvolution": "convolution_param",
    "ConvolutionDepthwise": "convolution_param",
    "Im2col": "convolution_param",
    "LSTM": "recurrent_param",
    "RNN": "recurrent_param",
    "Normalize": "norm_param",
    "SoftmaxWithLoss": "softmax_param",
}
WORDS = {
    "float": ["0", "1", "-1", "0.5", "2", "1e30", "nan", "-7"],
    "uint32": ["0", "1", "2", "3", "5", "8", "100000", "4000000000"],
    "int": ["0", "1", "2", "3", "-1", "-2", "7", "2000000000", "-2000000000"],
    "string": ['"xavier"', '"msra"', '"gaussian"', '"bilinear"', '"positive_unitball"', '"other"', '""'],
    "bool": ["true", "false"],
}


def some_message(random: Random, descriptor: Any) -> str:
    """A message of a kind, filled at random."""
    parts = []
    for field in descriptor.fields:
        for _ in range(random.choice([0, 0, 1, 2, 3] if field.is_repeated else [0, 0, 1])):
            if field.message_type:
                parts.append(f"{field.name} {{ {some_message(random, field.message_type)} }}")
            elif field.enum_type:
                parts.append(f"{field.name}: {random.choice(list(field.enum_type.values_by_name))}")
            else:
                kinds = {field.TYPE_FLOAT: "float", field.TYPE_UINT32: "uint32", field.TYPE_BOOL: "bool"}
                kind = "string" if field.type == field.TYPE_STRING else kinds.get(field.type, "int")
                parts.append(f"{field.name}: {random.choice(WORDS[kind])}")
    return " ".join(parts)


@pytest.mark.parametrize("type", known_types())
def test_any_layer_is_converted_or_refused(tmp_path: Path, type: str) -> None:
    random = Random(type)
    messages = {f.name: f.message_type for f in caffe_pb2.LayerParameter.DESCRIPTOR.fields}
    owner = OWNERS.get(type, "")
    for name in messages:
        if name.replace("_", "") == f"{type.lower()}param":
            owner = name
    head = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {d}' for d in shape.split())} }} }} }}"
        for name, shape in BLOBS.items()
    )
    for _ in range(8):
        bottoms = " ".join(
            f'bottom: "{b}"' for b in random.choices(list(BLOBS), k=random.choice([0, 1, 1, 1, 2, 2, 3]))
        )
        tops = " ".join(f'top: "t{i}"' for i in range(random.choice([0, 1, 1, 1, 2, 3])))
        params = f"{owner} {{ {some_message(random, messages[owner])} }}" if owner else ""
        end = 'layer { name: "end" type: "ReLU" bottom: "x" top: "end" }'
        path = write(tmp_path, f'{head} layer {{ name: "it" type: "{type}" {bottoms} {tops} {params} }} {end}')
        try:
            convert(path)
        except SurgeryError as error:
            assert "inconsistent" not in str(error), (bottoms, tops, params)  # noqa: PT017
            assert "not valid ONNX" not in str(error), (bottoms, tops, params)  # noqa: PT017


DEEP = """layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4
          kernel_size: 3 pad: 1 stride: 1 group: 1 dilation: 1 } }
          layer { name: "p" type: "Pooling" bottom: "c" top: "p"
                  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
          layer { name: "s" type: "Scale" bottom: "p" top: "p" scale_param { axis: 1 num_axes: 1 bias_term: true } }
          layer { name: "t" type: "Slice" bottom: "p" top: "t" top: "u" slice_param { axis: 1 slice_point: 1 } }
          layer { name: "r" type: "Reshape" bottom: "t" top: "r"
                  reshape_param { shape { dim: 0 dim: -1 dim: 1 } axis: 0 } }
          layer { name: "f" type: "Flatten" bottom: "u" top: "f" flatten_param { axis: 1 end_axis: -1 } }
          layer { name: "i" type: "InnerProduct" bottom: "f" top: "i" inner_product_param { num_output: 4 axis: 1 } }
          layer { name: "l" type: "LRN" bottom: "c" top: "l"
                  lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL } }"""
