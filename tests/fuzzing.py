"""Feeds changed files to what reads them, in a process of its own: `python -m tests.fuzzing KIND COUNT SEED FOLDER`.

Each is read or refused in one line, within 5 seconds; the process ends with an error at the first that is not, and
prints its peak of memory and how many were refused.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from surgery.errors import SurgeryError
from surgery.runtime import load_runtime

__all__ = ["KINDS", "changed_bytes", "changed_message", "changed_text", "main"]

LIMIT = 5  # seconds of computing for one file
Feed = Callable[[Random, Path], Callable[[], object]]  # writes a file; what it returns reads it
HUGE = (0, 1, -1, 2, 7, 255, 2**16, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63))


def changed_bytes(data: bytes, random: Random) -> bytes:
    """`data` with some bytes changed, bits flipped, and pieces taken out, repeated or cut off."""
    result = bytearray(data)
    for _ in range(random.randint(1, 5)):
        kind, place = random.randrange(5), random.randrange(len(result))
        if kind == 0:
            result[place] = random.randrange(256)
        elif kind == 1:
            result[place] ^= 1 << random.randrange(8)
        elif kind == 2:
            del result[place : place + random.randint(1, 20)]
        elif kind == 3:
            start = random.randrange(len(result))
            result[place:place] = result[start : start + random.randint(1, 40)]
        elif random.random() < 0.2:
            del result[place:]
        result = result or bytearray(1)
    return bytes(result)


def changed_text(text: str, random: Random, more: Sequence[str] = ()) -> str:
    """`text` with a word or two gone, or others: half of the time of the same kind."""
    words = text.split(" ")
    pool = [*words, *more, "-1", "0", "7", "1e30", "nan", "true", "{", "}", "[", "]", ":", "-", '""', "9" * 12, "\n"]
    for _ in range(random.randint(1, 2)):
        place = random.randrange(len(words))
        kind = random.randrange(6)
        if kind < 3:
            words[place] = random.choice([w for w in pool if _kind(w) == _kind(words[place])])
        elif kind == 3:
            words[place] = random.choice(pool)
        elif kind == 4:
            words.insert(place, random.choice(pool))
        elif len(words) > 1:
            del words[place]
    return " ".join(words)


def _kind(word: str) -> tuple[bool, ...]:
    """What words must have in common to stand for each other: a number, a text, a key, or punctuation."""
    return word.strip(",-.").isalnum(), word[:1].isdigit() or word[:1] == "-", word.startswith('"'), word.endswith(":")


def changed_message(message: Any, random: Random) -> bytes:
    """A protobuf message with some fields anywhere in it changed, taken out or repeated."""
    made = type(message).FromString(message.SerializeToString())
    for _ in range(random.randint(1, 3)):
        part = made
        while True:
            inner = [(f, v) for f, v in part.ListFields() if f.message_type is not None]
            if not inner or random.random() < 0.15:
                break
            field, value = random.choice(inner)
            part = random.choice(value) if field.is_repeated else value
        fields = part.ListFields()
        if not fields:
            continue
        field, value = random.choice(fields)
        if field.is_repeated:
            _change_repeated(field, value, random)
        elif field.message_type is not None or random.random() < 0.2:
            part.ClearField(field.name)
        else:
            _set(lambda new, part=part, field=field: setattr(part, field.name, new), value, random)
    return bytes(made.SerializeToString())


def _change_repeated(field: Any, values: Any, random: Random) -> None:
    place, kind = random.randrange(len(values)), random.randrange(3)
    if kind == 0:
        del values[place]
    elif field.message_type is not None:
        values.append(random.choice(values))
    elif kind == 1:
        values.append(values[place])
    else:
        _set(lambda new: values.__setitem__(place, new), values[place], random)


def _set(put: Callable[[Any], None], value: Any, random: Random) -> None:
    choices: Sequence[Any] = HUGE
    if isinstance(value, float):
        choices = (0.0, -1.0, float("nan"), float("inf"), 1e30)
    elif isinstance(value, str):
        choices = ("", "x", "../x", "é" * 300, "Conv", "w1")
    elif isinstance(value, bytes):
        choices = (b"", value[:-1], value * 2)
    try:
        put(random.choice(choices))
    except (ValueError, TypeError):  # out of the field's range
        put(type(value)())


def _read_onnx(path: Path) -> None:
    from surgery.io import infer_shapes, load, save
    from surgery.layers import head, layers

    model = load(path)
    with contextlib.suppress(SurgeryError):
        head(model)
    for layer in layers(model):
        assert layer.size >= 0
        assert layer.trainable in (True, False)
    infer_shapes(model)
    save(model, path.with_name("saved.onnx"))


def _onnx(folder: Path) -> Feed:
    import numpy as np
    import onnx
    import onnx_ir as ir

    from tests.graphs import cnn, mlp, squeezenet

    protos = [ir.to_proto(make()) for make in (cnn, mlp, squeezenet)]
    branches = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[N,3] x, bool c) => (float[N,3] y) <float[3] w = {1, 2, 3}>
        { z = d.f(x) y = If(c) <then_branch = t () => (float[N,3] a) { k = Constant<value = float[3] {4, 5, 6}>()
          a = Add(z, k) }, else_branch = e () => (float[N,3] b) { b = Mul(z, w) }> }
        <domain: "d", opset_import: ["" : 17]> f (i) => (o) { o = Relu(i) }""")
    big = ir.to_proto(mlp())
    big.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((129, 128), np.float32), "big"))
    outside = ir.to_proto(mlp())
    for tensor in outside.graph.initializer:
        (folder / "weights.bin").write_bytes(bytes(4096))
        for key, value in (("location", "weights.bin"), ("offset", "64"), ("length", str(len(tensor.raw_data)))):
            tensor.external_data.add(key=key, value=value)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        break
    protos += [branches, big, outside]
    contents = [proto.SerializeToString() for proto in protos]

    def feed(random: Random, path: Path) -> Callable[[], object]:
        number = random.randrange(len(protos))
        if random.random() < 0.5:
            path.write_bytes(changed_bytes(contents[number], random))
        else:
            path.write_bytes(changed_message(protos[number], random))
        return lambda: _read_onnx(path)

    return feed


NET = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 1 } convolution_param { num_output: 4
  kernel_size: 3 pad: 1 group: 1 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "d" type: "Dropout" bottom: "p" top: "p" dropout_param { dropout_ratio: 0.5 } }
layer { name: "i" type: "InnerProduct" bottom: "p" top: "i" inner_product_param { num_output: 3 } }
layer { name: "s" type: "Softmax" bottom: "i" top: "s" softmax_param { axis: 1 } }"""


def _caffe_message() -> Any:
    from google.protobuf import text_format

    from converters.caffe.caffe_pb2 import NetParameter

    net = text_format.Parse(NET, NetParameter())
    shapes = {"c": [(4, 3, 3, 3), (4,)], "i": [(3, 64), (3,)]}
    for layer in net.layer:
        for shape in shapes.get(layer.name, []):
            blob = layer.blobs.add()
            blob.shape.dim.extend(shape)
            count = 1
            for size in shape:
                count *= size
            blob.data.extend([0.1] * count)
    return net


def _convert(path: Path) -> Callable[[], object]:
    from converters import convert

    return lambda: convert(path)


def _prototxt(folder: Path) -> Feed:
    from google.protobuf import text_format

    from converters.caffe.caffe_pb2 import NetParameter

    net = text_format.Parse(NET, NetParameter())

    def feed(random: Random, path: Path) -> Callable[[], object]:
        if random.random() < 0.4:
            text = text_format.MessageToString(NetParameter.FromString(changed_message(net, random)))
        else:
            text = changed_text(NET, random, ("dim:", "MAX", "bottom:", '"Concat"', '"Reshape"', '"LSTM"'))
        path.write_bytes(changed_bytes(text.encode(), random) if random.random() < 0.2 else text.encode())
        return _convert(path)

    return feed


def _caffemodel(folder: Path) -> Feed:
    net = _caffe_message()
    content = net.SerializeToString()

    def feed(random: Random, path: Path) -> Callable[[], object]:
        (folder / "net.prototxt").write_text(NET)
        data = changed_bytes(content, random) if random.random() < 0.5 else changed_message(net, random)
        (folder / "net.caffemodel").write_bytes(data)
        return _convert(folder / random.choice(["net.prototxt", "net.caffemodel"]))

    return feed


def _t7(folder: Path) -> Feed:
    import numpy as np

    from tests.converters.torch7_files import module, t7

    weights = {"weight": np.ones((4, 3), np.float32), "bias": np.ones(4, np.float32)}
    image = {"nInputPlane": 1, "nOutputPlane": 2, "kW": 3, "kH": 3, "dW": 1, "dH": 1, "padW": 0, "padH": 0}
    kernel = np.ones((2, 1, 3, 3), np.float32)
    nets = [
        module("Sequential", module("Linear", **weights), module("ReLU", inplace=False), module("SoftMax")),
        module("Sequential", module("SpatialConvolution", **image, weight=kernel, bias=np.ones(2)), module("Tanh")),
    ]
    contents = [t7(net, ascii=ascii) for net in nets for ascii in (True, False)]

    def feed(random: Random, path: Path) -> Callable[[], object]:
        path.write_bytes(changed_bytes(random.choice(contents), random))
        return _convert(path)

    return feed


def _h5(folder: Path) -> Feed:
    import io

    import h5py
    import numpy as np

    def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
        return {"class_name": kind, "config": {"name": name, "trainable": True, **config}}

    net = [
        layer("Conv2D", "c", filters=2, kernel_size=[3, 3], batch_input_shape=[None, 8, 8, 1], activation="relu"),
        layer("Flatten", "f"),
        layer("Dense", "d", units=3, activation="softmax"),
    ]
    config = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": net}})
    arrays = {"c": [(3, 3, 1, 2), (2,)], "d": [(72, 3), (3,)], "f": []}

    def made(text: str) -> bytes:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs["model_config"] = text.encode()
            group = file.create_group("model_weights")
            group.attrs["layer_names"] = [name.encode() for name in arrays]
            for owner in (file, group):
                owner.attrs["keras_version"] = b"2.2.4"
                owner.attrs["backend"] = b"tensorflow"
            for name, shapes in arrays.items():
                own = group.create_group(name)
                own.attrs["weight_names"] = [f"{name}/{r}:0".encode() for r, _ in zip(("kernel", "bias"), shapes)]  # noqa: B905
                for role, shape in zip(("kernel", "bias"), shapes):  # noqa: B905
                    own[f"{name}/{role}:0"] = np.ones(shape, np.float32)
        return buffer.getvalue()

    whole = made(config)

    def feed(random: Random, path: Path) -> Callable[[], object]:
        if random.random() < 0.6:
            path.write_bytes(changed_bytes(whole, random))
        else:
            path.write_bytes(made(changed_text(config, random, ("null", "{}", "[]", '"relu",'))))
        return _convert(path)

    return feed


RECIPE = """passes:
  - replace_head: { units: 2 , labels: [ ant , bee ] , activation: softmax }
  - freeze: { until: r }
  - insert_dropout: { hidden: 0.5 , input: 0.1 }
  - max_norm: { value: 3 , layers: { type: Gemm } }
  - learning_rate: { layers: head , multiplier: 0.1 }
  - insert: { layers: r , operator: LeakyRelu , attributes: { alpha: 0.1 } }
  - rename: { x: image }
train:
  epochs: 3
  batch_size: 16
  learning_rate: 0.01
  optimizer: { name: sgd , momentum: 0.9 }
"""


def _yaml(folder: Path) -> Feed:
    from surgery.recipe import apply_recipe, load_recipe
    from tests.graphs import mlp

    def feed(random: Random, path: Path) -> Callable[[], object]:
        text = changed_text(RECIPE, random, ("&a", "*a", "!!python/object:os.system", "<<:", "y", "'", "|"))
        path.write_bytes(changed_bytes(text.encode(), random) if random.random() < 0.1 else text.encode())
        return lambda: apply_recipe(load_recipe(path), mlp())

    return feed


KINDS: dict[str, tuple[str, Callable[[Path], Feed]]] = {
    "onnx": ("m.onnx", _onnx),
    "prototxt": ("net.prototxt", _prototxt),
    "caffemodel": ("net.caffemodel", _caffemodel),
    "t7": ("net.t7", _t7),
    "h5": ("net.h5", _h5),
    "yaml": ("recipe.yaml", _yaml),
}


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    """Runs one kind; prints a JSON line."""
    name, make = KINDS[kind]
    feed = make(folder)
    refused = 0
    load_runtime()  # which takes its time
    logging.disable(logging.WARNING)
    faulthandler.register(signal.SIGPROF, chain=True)  # shows where, and ends the process
    for number in range(count):
        random = Random(f"{seed} {number}")
        read = feed(random, folder / name)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            read()
        except SurgeryError as error:
            refused += 1
            if "\n" in str(error):
                raise AssertionError(f"{kind} {number}: the message has several lines: {error}") from error
        except Exception as error:
            raise AssertionError(f"{kind} {number} of seed {seed}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    print(json.dumps({"refused": refused, "megabytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
