"""Time and memory of converting a Caffe model of VGG-16's size (553 MB) to an ONNX file, one run of it
included; without what importing the libraries takes.

.venv/bin/python -m benchmarks.convert_caffe
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from converters.caffe.caffe_pb2 import NetParameter

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions between poolings
HEAD = (("fc6", 4096), ("fc7", 4096), ("fc8", 1000))

MEASURE = """
import sys, time
import onnx, onnxruntime, converters.caffe.build, surgery.io, onnx_ir.passes.common
from converters import convert

def peak():  # of this process alone: ru_maxrss begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak()
start = time.perf_counter()
convert(sys.argv[1], output=sys.argv[2])
print(time.perf_counter() - start, peak() - before)
"""


def write_vgg16(folder: Path) -> Path:
    """Writes VGG-16 with random weights as prototxt and caffemodel (Simonyan and Zisserman 2014, configuration D)."""
    text = ['input: "data" input_shape { dim: 1 dim: 3 dim: 224 dim: 224 }']
    shapes: dict[str, tuple[int, ...]] = {}
    last, channels = "data", 3
    for number, (width, count) in enumerate(BLOCKS, start=1):
        for index in range(1, count + 1):
            name = f"conv{number}_{index}"
            text.append(f'layer {{ name: "{name}" type: "Convolution" bottom: "{last}" top: "{name}" '
                        f"convolution_param {{ num_output: {width} kernel_size: 3 pad: 1 }} }}")  # fmt: skip
            text.append(f'layer {{ name: "relu{number}_{index}" type: "ReLU" bottom: "{name}" top: "{name}" }}')
            shapes[name], last, channels = (width, channels, 3, 3), name, width
        text.append(f'layer {{ name: "pool{number}" type: "Pooling" bottom: "{last}" top: "pool{number}" '
                    "pooling_param { kernel_size: 2 stride: 2 } }")  # fmt: skip
        last = f"pool{number}"
    inputs = 512 * 7 * 7
    for name, units in HEAD:
        text.append(f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{last}" top: "{name}" '
                    f"inner_product_param {{ num_output: {units} }} }}")  # fmt: skip
        shapes[name], last, inputs = (units, inputs), name, units
    text.append(f'layer {{ name: "prob" type: "Softmax" bottom: "{last}" top: "prob" }}')
    definition = folder / "vgg16.prototxt"
    definition.write_text("\n".join(text))
    net = text_format.Parse(definition.read_text(), NetParameter())
    rng = np.random.default_rng(0)
    for layer in net.layer:
        if layer.name in shapes:
            for shape in (shapes[layer.name], shapes[layer.name][:1]):
                blob = layer.blobs.add()
                blob.shape.dim.extend(shape)
                blob.data.extend((rng.standard_normal(shape, np.float32) * 0.01).ravel())
    definition.with_suffix(".caffemodel").write_bytes(net.SerializeToString())
    return definition


def main() -> None:
    """Measures in a process of its own and prints one line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        definition = write_vgg16(folder)
        size = definition.with_suffix(".caffemodel").stat().st_size
        command = [sys.executable, "-c", MEASURE, str(definition), str(folder / "vgg16.onnx")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, kibibytes = (float(word) for word in result.stdout.split())
        memory = kibibytes * 1024
        print(
            f"caffemodel {size / 1e6:.0f} MB: {seconds:.2f} s, {memory / 1e6:.0f} MB of memory ({memory / size:.2f}×)"
        )


if __name__ == "__main__":
    main()
