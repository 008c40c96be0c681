"""PyTorch files that are damaged, hostile, or something else: nothing in them is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import converters
from converters.pytorch.program import _is_arithmetic
from surgery.errors import SurgeryError
from tests.cli.test_cli import fails
from tests.converters.pytorch_nets import Pooled, Two, small

NETS = "tests.converters.pytorch_nets"
SHAPE = "3x16x16"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small .pt2 with a free dimension and a number that is no parameter."""
    path = tmp_path_factory.mktemp("program") / "two.pt2"
    batch = torch.export.Dim("batch")
    inputs = (torch.randn(2, 4), torch.randn(2, 2))
    torch.export.save(torch.export.export(Two(), inputs, dynamic_shapes=({0: batch}, {0: batch})), path)
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "net.pt"
    torch.jit.trace(small(), torch.randn(1, 3, 16, 16)).save(str(path))
    return path


def changed(path: Path, target: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Path:
    """Writes the archive `path` to `target` with other entries; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def convert(path: Path) -> None:
    """Converts `path`, or `small` with the weights in it."""
    if path.suffix == ".pth":
        converters.convert(f"{NETS}:small", weights=path, shape=SHAPE)
    else:
        converters.convert(path, **({} if path.suffix == ".pt2" else {"shape": SHAPE}))


def json_changed(change: Callable[[Any], None], ending: str = ".json") -> Callable[[str, bytes], bytes]:
    """Changes what the entries with `ending` say."""

    def apply(name: str, data: bytes) -> bytes:
        if not name.endswith(ending):
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return apply


def dictionaries(data: Any) -> list[dict[str, Any]]:
    found = [data] if isinstance(data, dict) else []
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else []:
        found += dictionaries(value)
    return found


def test_the_program_itself_is_read(program: Path) -> None:
    model = converters.convert(program)
    assert [i.name for i in model.graph.inputs] == ["image", "info"]
    assert str(model.graph.inputs[0].shape) == "[batch,4]"
    assert converters.verify(program, model).equal


def test_pickled_modules_are_never_loaded(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "module.pth")
    with pytest.raises(SurgeryError, match=r"a pickled module, which is never loaded; name the code that makes the"):
        converters.convert(tmp_path / "module.pth")
    with pytest.raises(SurgeryError, match=r"holds Python objects, .* never loaded, .* save its state_dict"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "module.pth", shape=SHAPE)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_hostile_pickles_do_nothing(tmp_path: Path, old: bool, wrapped: bool) -> None:
    made, bomb = tmp_path / "made", Hostile(tmp_path / "made")
    data: Any = {**small().state_dict(), "fc.bias": bomb} if wrapped else bomb
    torch.save(data, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(SurgeryError, match="holds Python objects"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "w.pth", shape=SHAPE)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(bomb))
    with pytest.raises(SurgeryError, match="holds Python objects"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "plain.pth", shape=SHAPE)
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(SurgeryError, match="which is never loaded"):
            converters.convert(tmp_path / name)
    assert not made.exists()
    pickle.loads(pickle.dumps(bomb))
    assert made.exists()  # which it would have done


def test_hostile_programs_do_nothing(program: Path, tmp_path: Path) -> None:
    """Pickles wherever `torch.export.load` looks for one."""
    made = tmp_path / "made"
    bomb = io.BytesIO()
    torch.save({"x": Hostile(made)}, bomb)

    def everywhere(name: str, data: bytes) -> bytes:
        return data if name.endswith((".json", "version", "byteorder", "format", "_id")) else bomb.getvalue()

    def as_pickle(content: Any) -> None:
        for entry in dictionaries(content):
            if "use_pickle" in entry:
                entry["use_pickle"] = True

    inside = changed(program, tmp_path / "inside.pt2", everywhere)
    with pytest.raises(SurgeryError, match=r"inside\.pt2: PyTorch .* cannot read it"):
        converters.convert(inside)
    with pytest.raises(SurgeryError, match=r"cannot read it"):
        converters.convert(changed(inside, tmp_path / "pickled.pt2", json_changed(as_pickle)))
    objects = tmp_path / "objects.pt2"
    changed(program, objects, lambda name, data: data)
    with zipfile.ZipFile(objects, "a") as archive:
        archive.writestr("two/data/constants/custom_obj_0", pickle.dumps(Hostile(made)))
    with pytest.raises(SurgeryError, match="holds custom_obj_0, a Python object or compiled code, which is never"):
        converters.convert(objects)

    def as_object(content: Any) -> None:
        content["config"] = {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}

    with pytest.raises(SurgeryError, match="holds opaque_obj_0"):
        converters.convert(changed(program, tmp_path / "c.pt2", json_changed(as_object, "constants_config.json")))
    assert not made.exists()


def test_hostile_expressions_are_not_evaluated(program: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    evil = f"__import__('os').mkdir({str(made)!r})"

    def sizes(content: Any) -> None:
        for entry in dictionaries(content):
            if "expr_str" in entry:
                entry["expr_str"] = evil

    def ranges(content: Any) -> None:
        content["range_constraints"] = {evil: next(iter(content["range_constraints"].values()))}

    for number, change in enumerate((sizes, ranges)):
        path = changed(program, tmp_path / f"{number}.pt2", json_changed(change, "model.json"))
        with pytest.raises(SurgeryError, match=r"a size is said to be .*, which is not arithmetic"):
            converters.convert(path)

    def guards(content: Any) -> None:
        content["guards_code"] = [evil]

    model = converters.convert(changed(program, tmp_path / "guards.pt2", json_changed(guards, "model.json")))
    assert converters.verify(tmp_path / "guards.pt2", model).equal
    assert not made.exists()


@pytest.mark.parametrize(
    "operator",
    ["torch.hub.load", "torch.os.system", "torch.ops.aten.from_file.default", "_operator.methodcaller", "#higher:x",
     "torch.ops.custom.op.default", "math.__loader__", "builtins.eval"],
)  # fmt: skip
def test_operators_that_are_not_pytorchs_own(program: Path, tmp_path: Path, operator: str) -> None:
    def other(content: Any) -> None:
        next(entry for entry in dictionaries(content) if "target" in entry)["target"] = operator

    path = changed(program, tmp_path / "x.pt2", json_changed(other, "model.json"))
    with pytest.raises(SurgeryError, match=f"uses '{operator}', which is none of PyTorch's own operators"):
        converters.convert(path)


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("s77", True),
        ("2*s0 + 1", True),
        ("Max(1, (s0 - 1)//2 + 1)", True),
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Add(Integer(-1), Mul(Integer(2), Symbol('u0', integer=True)))", True),
        ("Eq(Mod(s0, 4), 0)", True),
        ("s0**2", True),
        ("FloorDiv(s0, 2) >= 3 and True", True),
        ("s0.__class__", False),
        ("eval", False),
        ("chr(95)", False),
        ("Symbol('os.system')", False),
        ("'s77'", False),
        ("[s0 for s0 in s1]", False),
        ("lambda: 0", False),
        ("9**9**9**9**9", False),
        ("Pow(Integer(9), Integer(999999999))", False),
        ("9**999999999", False),
        ("99999999999999999999999", False),
        ("s0" + "+ 1" * 1000, False),
        ("(" * 400 + "1" + ")" * 400, False),
        ("Max(s0, key=1)", False),
        ("", False),
        (None, False),
    ],
)
def test_arithmetic(text: Any, harmless: bool) -> None:
    assert _is_arithmetic(text) is harmless


def test_files_that_are_bigger_than_they_are(program: Path, script: Path, tmp_path: Path) -> None:
    """A few kilobytes that would become gigabytes, were they unpacked."""

    def swollen(name: str, data: bytes) -> bytes:
        return bytes(2**26) if name.endswith(("weight_0", "data/0", "data.pkl")) else data

    state = tmp_path / "state.pth"
    torch.save(small().state_dict(), state)
    for source, name in ((program, "a.pt2"), (script, "b.pt"), (state, "c.pth")):
        bomb = changed(source, tmp_path / name, swollen, zipfile.ZIP_DEFLATED)
        assert bomb.stat().st_size < 500_000
        with pytest.raises(SurgeryError, match="its entries are far bigger than the file"):
            convert(bomb)


@pytest.mark.parametrize("ending", [".pt2", ".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + b"\0" * 40, b"\x80\x02", b"text", b"\xff" * 100])
def test_files_that_are_none(tmp_path: Path, ending: str, content: bytes) -> None:
    (tmp_path / f"x{ending}").write_bytes(content)
    with pytest.raises(SurgeryError, match=f"x{ending}: "):
        converters.convert(tmp_path / f"x{ending}", **({} if ending == ".pt2" else {"shape": SHAPE}))
    with pytest.raises(SurgeryError, match=f"x{ending}: "):
        converters.convert(f"{NETS}:small", weights=tmp_path / f"x{ending}", shape=SHAPE)


def test_truncated_files(program: Path, script: Path, tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "state.pth")
    for source in (program, script, tmp_path / "state.pth"):
        data = source.read_bytes()
        for part in (0.1, 0.5, 0.9, 0.999):
            path = tmp_path / f"cut{source.suffix}"
            path.write_bytes(data[: int(len(data) * part)])
            with pytest.raises(SurgeryError, match=rf"cut{source.suffix}: "):
                convert(path)


def test_entries_that_are_missing_or_damaged(program: Path, script: Path, tmp_path: Path) -> None:
    for source, options in ((program, {}), (script, {"shape": SHAPE})):
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if name.endswith((".json", ".pkl", "weight_0", "data/0"))]
        for number, name in enumerate(names):
            for damaged in (None, b"{}", b"\x80\x02}."):

                def damage(other: str, data: bytes, name: str = name, damaged: bytes | None = damaged) -> bytes | None:
                    return damaged if other == name else data

                path = changed(source, tmp_path / f"{number}{source.suffix}", damage)
                try:
                    converters.convert(path, **options)
                except SurgeryError as error:
                    assert str(path) in str(error)  # noqa: PT017  # some entries are of no account


SAFE = [
    (lambda h: h["w"].update(data_offsets=[0, 2**40]), "w lies outside of the file"),
    (lambda h: h["w"].update(data_offsets=[-8, 0]), "w lies outside of the file"),
    (lambda h: h["w"].update(shape=[2**40]), "has 24 bytes"),
    (lambda h: h["w"].update(shape=[-2, -3]), "w lies outside of the file"),
    (lambda h: h["w"].update(dtype="PICKLE"), "KeyError: 'PICKLE'"),
    (lambda h: h["w"].update(shape="x"), "ValueError"),
    (lambda h: h.update(w=3), "TypeError"),
    (lambda h: h["w"].pop("shape"), "KeyError"),
]


@pytest.mark.parametrize(("change", "message"), SAFE)
def test_safetensors_that_say_the_impossible(tmp_path: Path, change: Any, message: str) -> None:
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    change(header)
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(SurgeryError, match=rf"w\.safetensors: is not a readable safetensors file \(.*{message}"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "w.safetensors", shape=SHAPE)


@pytest.mark.parametrize("length", [2**63, 2**40, 1000])
def test_safetensors_with_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(SurgeryError, match="is truncated, or not a safetensors file"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "w.safetensors", shape=SHAPE)


def test_a_tensor_that_says_more_than_it_holds(tmp_path: Path) -> None:
    """A stride of zero makes a petabyte of four bytes."""
    state = small().state_dict()
    state["fc.weight"] = torch.zeros(1).as_strided((2**25, 2**25), (0, 0))
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SurgeryError, match=r"size mismatch for fc\.weight"):
        converters.convert(f"{NETS}:small", weights=tmp_path / "w.pth", shape=SHAPE)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (f"{NETS}:small", {}, r"give it with --shape, such as 3x224x224 \(inputs: x\)"),
        (f"{NETS}:small", {"shape": "y=3x4x4"}, "has no input 'y'; it has x"),
        (f"{NETS}:small", {"shape": "3x4x4x4"}, "torch.export cannot trace it"),
        (f"{NETS}:small", {"shape": SHAPE, "dtype": "float17"}, "'float17' is not a type of PyTorch's"),
        (f"{NETS}:small", {"shape": SHAPE, "batch": 0}, "batch is 0 and must be a whole number"),
        (f"{NETS}:small", {"shape": SHAPE, "arguments": [1]}, "must be by name"),
        (f"{NETS}:small", {"shape": SHAPE, "arguments": {"size": 1}}, "calling it fails .*size"),
        (f"{NETS}:failing", {"shape": SHAPE}, r"calling it fails \(no such\)"),
        (f"{NETS}:number", {"shape": SHAPE}, "returns a int, not a torch.nn.Module"),
        (f"{NETS}:absent", {"shape": SHAPE}, "has no 'absent'"),
        (f"{NETS}:ready", {"shape": SHAPE, "arguments": {"a": 1}}, "is a network already"),
        ("no_such_module:f", {"shape": SHAPE}, "the module cannot be imported"),
        (f"{NETS}:small", {"shape": SHAPE, "typo": 1}, "has no option 'typo'"),
    ],
)
def test_what_cannot_be_converted(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        converters.convert(source, **options)


def test_pooling_to_a_size_needs_the_inputs() -> None:
    """The exporter writes it for the example's size alone: 224 would go through as it is, 256 with other numbers."""
    with pytest.raises(
        SurgeryError, match=r"adaptive_avg_pool2d pools an input of any size to 7x7.* --shape 3x224x224"
    ):
        converters.convert(f"{NETS}:Pooled", shape="3x?x?")
    for options in ({"shape": "3x256x256"}, {"shape": "3x?x?", "arguments": {"size": 1}}):
        model = converters.convert(f"{NETS}:Pooled", **options)
        assert converters.verify(f"{NETS}:Pooled", model, **options).equal


def test_a_script_that_cannot_be_exported_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pooled.pt"
    torch.jit.trace(Pooled(), torch.randn(1, 3, 256, 256)).save(str(path))
    with pytest.raises(SurgeryError, match=r"torch\.onnx cannot export it .*adaptive_avg_pool2d"):
        converters.convert(path, shape="3x256x256")
    assert "graph(" not in "".join(capfd.readouterr())


def test_options_that_a_file_does_not_take(program: Path, script: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save({}, weights)
    for options, message in (
        ({"weights": weights}, "takes no weights"),
        ({"arguments": {"a": 1}}, "takes no arguments"),
        ({"shape": "4"}, "knows its inputs"),
    ):
        with pytest.raises(SurgeryError, match=message):
            converters.convert(program, **options)
    with pytest.raises(SurgeryError, match="is a whole network; convert it without another"):
        converters.convert(f"{NETS}:small", weights=script, shape=SHAPE)
    torch.save({"epoch": 3, "loss": 0.1}, weights)
    with pytest.raises(SurgeryError, match=r"holds no state_dict .*, but the entries epoch, loss"):
        converters.convert(f"{NETS}:small", weights=weights, shape=SHAPE)


def test_without_pytorch(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = fails("convert", script, "-o", tmp_path / "x.onnx", "--shape", SHAPE)
    assert "converting from PyTorch needs torch" in message
    assert "pip install 'onnx-surgery[pytorch]'" in message


def test_looking_for_a_converter_imports_no_framework(script: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from converters.registry import find_converter; "
        f"assert find_converter(Path({str(script)!r})).name == 'PyTorch'; "
        "sys.exit(int(bool({'torch', 'tensorflow', 'keras'} & sys.modules.keys())))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
