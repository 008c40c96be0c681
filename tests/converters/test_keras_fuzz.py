"""Keras files and layers changed at random are converted or refused, never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import convert
from converters.keras.context import known_types
from surgery.errors import SurgeryError
from tests.converters.test_keras_errors import DENSE, archive, file_of, network
from tests.converters.test_keras_legacy import layer, write

VALUES: list[Any] = [
    None, -1, 0, 1, 2, 7, 2**31, 1e30, float("nan"), True, "", "same", "x", [], [1], [0, 0], [3, 3], {}, {"config": {}},
    [[1, 1], [1, 1]], {"class_name": "MaxNorm", "config": {"axis": 9}}, [None, 4], -(2**63),
]  # fmt: skip
ARGUMENTS = """units filters kernel_size strides padding dilation_rate groups activation pool_size axis epsilon dims n
               target_shape size interpolation height width rate max_value negative_slope cropping data_format use_bias
               scale center layer merge_mode num_heads key_dim input_dim output_dim output_size equation mask_value
               depth_multiplier kernel_constraint noise_shape mean variance invert axes offset shared_axes trainable
               return_sequences output_padding keepdims"""
SHAPES: list[list[int | None]] = [[None, 6, 6, 3], [None, 4, 3], [None, 5], [None, None, None, 3], [None]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arguments_at_random_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(known_types()))
    arguments = data.draw(st.dictionaries(st.sampled_from(ARGUMENTS.split()), st.sampled_from(VALUES), max_size=5))
    model = network(layer(kind, "it", **arguments), shape=data.draw(st.sampled_from(SHAPES)))
    path = tmp_path / "net.json"
    path.write_text(json.dumps({**model, "keras_version": "3.0.0"}))
    weights = tmp_path / "net.h5"
    if not weights.exists():
        write(weights, None, {"it": [("a", np.ones((3, 2), np.float32))]}, "3.0.0")
    try:
        convert(path)
    except SurgeryError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    source = file_of(tmp_path)
    if data.draw(st.booleans()):
        weights = source.read_bytes()
        source = archive(tmp_path, {"config.json": json.dumps(DENSE).encode(), "model.weights.h5": weights})
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"changed{source.suffix}"
    path.write_bytes(content)
    try:
        model = convert(path)
    except SurgeryError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert isinstance(model, ir.Model)
