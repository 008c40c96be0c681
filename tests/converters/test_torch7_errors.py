"""Damaged, wrong and hostile .t7 files: one clear line, quickly, and without taking the machine's memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from converters import convert
from converters.finish import check
from converters.torch7.convert import convert_torch7
from surgery.errors import SurgeryError
from tests.converters.test_torch7 import ENCODINGS, graph, small_net
from tests.converters.test_torch7_modules import CASES
from tests.converters.torch7_files import Longs, Obj, View, module, t7, write_t7

WEIGHT = np.ones((4, 3), np.float32)
LINEAR = module("Linear", weight=WEIGHT)


@pytest.fixture(autouse=True)
def in_bounded_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 60


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(SurgeryError, match=message) as error:
        convert(path, **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"a PyTorch file.*\.pt"),
    (b"PK\x03\x04" + bytes(100), "a PyTorch file"),
    (b"<html><body>404</body></html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
    (bytes(range(9, 200)), "not a Torch7 file"),
    (b"\x01\0\0\0" + struct.pack("<d", 7), "holds a number, not a network"),
    (b"\0\0\0\0", "holds nothing, not a network"),
    (b"5\n1\n", "holds a boolean, not a network"),
    (b"3\n1\n1\n0\n0\n", "an entry without a key"),
    (t7([1, 2]), "no network; it has 1, 2"),
    (t7({"a": LINEAR, "b": LINEAR}), "several networks"),
    (t7(np.ones(3)), "holds torch.DoubleTensor, not a network"),
    (t7(Obj("tds.Hash", {}))[:-12] + struct.pack("<id", 1, 3.0), "tds.Hash has a format of its own"),
    (t7(Obj("nn.Evil\nname", {})), "not the name of a class"),
    (t7(Obj("torch.QuantumTensor", {})), "not a type that is known"),
    (t7(Obj("nn.Linaer", {})), r"'Linaer' \(nn.Linaer\).*did you mean 'Linear'.*--custom"),
    (t7(Obj("os.execute", {"command": "touch /tmp/x"})), "--custom"),
])  # fmt: skip
def test_files_that_are_no_network(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "net.t7"
    path.write_bytes(content)
    refused(path, message)


def tensor(shape: list[int], strides: list[int], offset: int, numbers: int, declared: int | None = None) -> bytes:
    """A binary file of a FloatTensor with these fields, and a storage of so many numbers."""
    head = struct.pack("<iii", 4, 1, 3) + b"V 1" + struct.pack("<i", 17) + b"torch.FloatTensor"
    fields = struct.pack(f"<i{2 * len(shape)}qq", len(shape), *shape, *strides, offset)
    storage = struct.pack("<iii", 4, 2, 3) + b"V 1" + struct.pack("<i", 18) + b"torch.FloatStorage"
    return head + fields + storage + struct.pack("<q", numbers if declared is None else declared) + bytes(4 * numbers)


@pytest.mark.parametrize(("content", "message"), [
    (tensor([2, 3], [3, 1], 1, 6), "holds torch.FloatTensor"),  # as it should be
    (tensor([2, 3], [3, 1], 1, 5), r"2×3 looks at number 5 of 5"),
    (tensor([2, 3], [3, 1], 2, 6), r"2×3 looks at number 6 of 6"),
    (tensor([2, 3], [3, 1], 0, 6), "is declared"),
    (tensor([-2, -3], [3, 1], 1, 6), "is declared"),
    (tensor([2, 3], [-3, 1], 5, 6), "is declared"),
    (tensor([2**40, 2**40], [0, 0], 1, 6), "repeats 6 numbers"),
    (tensor([2**62, 2**62, 4], [1, 1, 1], 1, 6), "looks at number"),
    (tensor([6], [1], 1, 6, 2**40), "numbers are declared"),
    (tensor([6], [1], 1, 6, -1), "numbers are declared"),
    (struct.pack("<ii", 2, 2**31 - 1) + b"short", "bytes are declared"),
    (struct.pack("<ii", 2, -5) + b"short", "bytes are declared"),
    (struct.pack("<iii", 3, 1, 2**31 - 1), "a table of 2,147,483,647 entries"),
    (struct.pack("<iii", 3, 1, -1), "a table of -1 entries"),
    (struct.pack("<iii", 8, 1, 2**30), "bytes are declared"),
    (b"4\n1\n3\nV 1\n17\ntorch.FloatTensor\n99999999999999999999999\n", "dimensions is declared"),
    (b"4\n1\n3\nV 1\n17\ntorch.FloatTensor\n1\n5\n1\n1\n4\n2\n3\nV 1\n18\ntorch.FloatStorage\n5\n1 2 x 4 5\n",
     "numbers"),
])  # fmt: skip
def test_tensors_that_cannot_be(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "net.t7"
    path.write_bytes(content)
    refused(path, message)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.t7"
    for how in ENCODINGS:
        whole = t7(small_net(), **how)
        for length in range(1, len(whole) - 40, 97):
            cut = whole[:length]
            if how["ascii"]:  # half a number is one too
                cut = cut[: cut.rfind(b"\n") + 1] or b"4"
            path.write_bytes(cut)
            refused(path, "truncated, damaged")


def nested(depth: int) -> Obj:
    net = LINEAR
    for _ in range(depth):
        net = module("Sequential", net)
    return net


def doubled(levels: int) -> Obj:
    """A network of 2 ** levels modules from a file of a few hundred bytes."""
    net = module("Tanh")
    for _ in range(levels):
        net = module("Sequential", net, net)
    return module("Sequential", LINEAR, net)


def circle() -> Obj:
    net = module("Sequential", LINEAR)
    net.fields["modules"].append(net)
    return net


def conv(**changes: Any) -> Obj:
    fields = {
        "nInputPlane": 2,
        "nOutputPlane": 4,
        "kW": 1,
        "kH": 1,
        "dW": 1,
        "dH": 1,
        "weight": np.ones((4, 2), np.float32),
    }
    return module("SpatialConvolution", **(fields | changes))


def overlapping(count: int) -> Obj:
    """Layers whose weights all look at nearly the same numbers."""
    base = np.ones(10_000 + count, np.float32)
    return module("Sequential", *(module("Linear", weight=View(base, (100, 100), (100, 1), i)) for i in range(count)))


BAD = [
    ("nested too deep", nested(150), "100 deep"),
    ("exponential", doubled(40), "more than 20,000 modules"),
    ("circle", circle(), "is in itself"),
    ("parameters from nothing", overlapping(50), "more numbers than are in the file"),
    ("no weight", module("Linear", bias=np.ones(3, np.float32)), "does not say the shape"),
    ("nothing in it", module("Sequential"), "does not say the shape"),
    ("weight of other size", conv(kW=3), "its weight is 4×2 and must be 4×2×1×3"),
    ("stride 0", conv(dW=0), "dW is 0"),
    ("huge stride", conv(dW=2**40), "dW is"),
    ("half a kernel", conv(kW=1.5), r"kW is 1\.5"),
    ("kernel is text", conv(kW="3"), "a number as its kW, and has a text"),
    ("groups", conv(groups=3), "do not divide into 3 groups"),
    ("channels", module("Sequential", conv(), conv()), "takes 2 channels, and is given 4"),
    ("linear", module("Sequential", LINEAR, LINEAR), "takes 3 numbers, and is given 4"),
    ("linear on an image", module("Sequential", conv(), LINEAR), r"'2.Linear'.*needs an input of 2 dimensions"),
    ("statistics", module("BatchNormalization", running_mean=np.ones(3)), "has no running_var"),
    ("deviation 0", module("BatchNormalization", running_mean=np.ones(2), running_std=np.zeros(2)), "above 0"),
    ("dropout of all", module("Sequential", LINEAR, module("Dropout", p=1, v2=True)), "p is 1"),
    ("even lrn", module("SpatialCrossMapLRN", size=4), "odd"),
    ("pooling", module("SpatialMaxPooling", kW=2, kH=2, dW=1, dH=1, padW=2, padH=0), "padding"),
    ("table for a tensor", module("Sequential", module("ConcatTable", LINEAR, LINEAR), module("Tanh")),
     "is given a table"),
    ("tensor for a table", module("Sequential", LINEAR, module("CAddTable")), "is given a tensor"),
    ("unlike", module("Sequential", module("ConcatTable", LINEAR, module("Identity")), module("CAddTable")),
     "different shapes"),
    ("no such entry", module("Sequential", module("ConcatTable", LINEAR), module("SelectTable", index=2)),
     "entry 2 of a table of 1"),
    ("view", module("Sequential", LINEAR, module("View", size=Longs([0]))), "cannot be"),
    ("reshape", module("Sequential", LINEAR, module("Reshape", size=Longs([7]), batchMode=True)), "makes 7 numbers"),
    ("huge view", module("Sequential", LINEAR, module("Reshape", size=Longs([2**31] * 9))), "cannot be"),
    ("axis", module("Sequential", LINEAR, module("Select", dimension=5, index=1)), "out of range"),
    ("select", module("Sequential", LINEAR, module("Select", dimension=2, index=9)), "takes number 9 of 4"),
    ("narrow", module("Sequential", LINEAR, module("Narrow", dimension=2, index=3, length=9)),
     "takes 9 from 3 on of 4"),
    ("swaps", module("Sequential", LINEAR, module("Transpose", permutations=[[1, 9]])), "which are not two"),
    ("no modules", module("Sequential", LINEAR, module("NoBackprop")), "holds no module"),
    ("not a module", module("Sequential", LINEAR, 5), "among its modules"),  # type: ignore[arg-type]
    ("graph without nodes", module("gModule"), "does not say the shape|forwardnodes"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_networks_that_cannot_be(tmp_path: Path, net: Obj, message: str) -> None:
    deep = {"shape": "3"} if "deep" in message else {}  # so deep is no input's shape looked for
    refused(write_t7(tmp_path, net), message, **deep)


@pytest.mark.parametrize(("option", "message"), [
    ({"shape": "3x24xy"}, "3x24xy"),
    ({"shape": "data=3"}, "no input takes the shape for data"),
    ({"shape": "0"}, "would have the shape 0"),
    ({"batch": 0}, "batch"),
    ({"batch": True}, "batch"),
    ({"key": "model"}, "no entry 'model'"),
    ({"custom": 5}, "module:function"),
    ({"weights": Path(__file__)}, "no option 'weights'"),
])  # fmt: skip
def test_options_that_cannot_be(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    path = write_t7(tmp_path, LINEAR)
    with pytest.raises(SurgeryError, match=message):
        convert(path, **option)


def test_graphs_that_cannot_be(tmp_path: Path) -> None:
    net = graph(1)
    nodes = net.fields["forwardnodes"]
    net.fields["forwardnodes"] = nodes[::-1]
    refused(write_t7(tmp_path, net), "reads what no node makes before", shape="5")
    net.fields["forwardnodes"] = nodes
    nodes[1].fields["data"]["selectindex"] = 3
    refused(write_t7(tmp_path, net), "takes entry 3", shape="5")


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """What is declared is compared with the file before anything of its size is made."""
    contents = [
        tensor([6], [1], 1, 6, 2**33),
        tensor([2**20, 2**20], [0, 0], 1, 6),
        struct.pack("<iii", 3, 1, 2**31 - 1) + bytes(100),
        struct.pack("<ii", 2, 2**31 - 1) + bytes(100),
        t7(doubled(60)),
        t7(overlapping(100)),
        b"".join(struct.pack("<iiiid", 3, i + 1, 1, 1, 1.0) for i in range(300_000)),
    ]
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.t7").write_bytes(content)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from converters import convert
from surgery.errors import SurgeryError
import converters.torch7.build, converters.keras, converters.pytorch, converters.caffe, onnx
def peak():  # of this process alone: ru_maxrss begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

before = peak()
for index in range({len(contents)}):
    try:
        convert({str(tmp_path)!r} + f"/{{index}}.t7")
    except SurgeryError as error:
        print(error)
print((peak() - before) // 1024, "MiB")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *messages, used = result.stdout.strip().splitlines()
    assert len(messages) == len(contents)
    assert int(used.split()[0]) < 200


NETS: list[Any] = [
    small_net(),
    graph(1),
    {"model": small_net("SoftMax")},
    *(net for _, net, shape, _ in CASES if shape == (2, 4, 9, 7)),
]


def changed(random: Random, content: bytearray) -> bytes:
    """The content with some bytes changed, dropped, or put elsewhere."""
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(content))
        kind = random.randrange(4)
        if kind == 0:
            content[place] = random.randrange(256)
        elif kind == 1:
            content[place : place + 4] = struct.pack(
                "<i", random.choice([0, 1, -1, 2, 3, 4, 8, 100, 2**31 - 1, -(2**31)])
            )
        elif kind == 2:
            del content[place : place + random.randint(1, 8)]
        else:
            start = random.randrange(len(content))
            content[place:place] = content[start : start + random.randint(1, 40)]
    return bytes(content)


@pytest.mark.parametrize("how", ENCODINGS, ids=str)
def test_changed_files_are_read_or_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    """Bytes changed at random: a network or one line. The run that ends a conversion is left out; it costs most."""
    random, path = Random(str(how)), tmp_path / "net.t7"
    for round in range(800):
        path.write_bytes(changed(random, bytearray(t7(random.choice(NETS), **how))))
        try:
            model = convert_torch7(path, shape="4x9x7")
            assert len(model.graph.outputs)
        except SurgeryError as error:
            assert "\n" not in str(error), round  # noqa: PT017


WORDS = [0, 1, 2, -1, 3, 7, 1.5, 1e9, -1e9, 2**31, "x", True, False, None, [], [1, 2], {"a": 1}, np.ones(4, np.float32),
         np.ones((4, 4)), Longs([1, -1]), Longs([0]), module("Tanh")]  # fmt: skip


def test_any_field_may_hold_anything(tmp_path: Path) -> None:
    """Fields changed at random, in modules that are as they should be otherwise: converted and checked, or refused."""
    random, converted = Random(5), 0
    for _, net, shape, _ in CASES * 8:
        victim = random.choice([net, *net.fields.get("modules", [])])
        name = random.choice([k for k in victim.fields if k not in ("gradInput", "train", "_type")] or ["weight"])
        kept = dict(victim.fields)
        victim.fields[name] = random.choice(WORDS)
        path = write_t7(tmp_path, net)
        victim.fields.clear()
        victim.fields.update(kept)
        sizes = [s[1:] for s in (shape if isinstance(shape, list) else [shape])]
        names = ["input"] if len(sizes) == 1 else ["input1", "input2"]
        try:
            model = convert_torch7(path, shape=dict(zip(names, sizes, strict=True)))
        except SurgeryError as error:
            assert "inconsistent" not in str(error), (victim.type, name)  # noqa: PT017
            continue
        converted += 1

        check(model, path)
    assert converted > 50
