"""What lands on the disk: untouched weights byte for byte, all or nothing, links, one writer at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from surgery.errors import SurgeryError
from surgery.io import load, save, tensors, writing
from surgery.io.tensors import ExternalTensor, InlineTensor
from surgery.recipe import apply

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N,200] x) => (float[N,100] y)
    { a = Gemm<transB=1>(x, w1, b1) r = Relu(a) h = Gemm<transB=1>(r, w2, b2) y = Softmax(h) }"""
SHAPES = {"w1": (300, 200), "b1": (300,), "w2": (100, 300), "b2": (100,)}


def proto(rng: np.random.Generator) -> onnx.ModelProto:
    made = onnx.parser.parse_model(TEXT)
    for name, shape in SHAPES.items():
        array = rng.normal(size=shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return made


def weights(path: Path) -> dict[str, bytes]:
    """The raw bytes of a file's weights, as onnx reads them."""
    return {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


@pytest.fixture
def single(tmp_path: Path, rng: np.random.Generator) -> Path:
    (tmp_path / "in").mkdir()
    onnx.save(proto(rng), tmp_path / "in" / "m.onnx")
    return tmp_path / "in" / "m.onnx"


@pytest.fixture
def external(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A model with its weights in two files, aligned to 4096 bytes."""
    (tmp_path / "in").mkdir()
    made = proto(rng)
    places = {"w1": ("one.bin", 4096), "b1": ("one.bin", 245_760), "w2": ("two.bin", 0), "b2": ("two.bin", 122_880)}
    for tensor in made.graph.initializer:
        name, offset = places[tensor.name]
        with (tmp_path / "in" / name).open("r+b" if (tmp_path / "in" / name).exists() else "w+b") as file:
            file.seek(offset)
            file.write(tensor.raw_data)
        entries = {"location": name, "offset": str(offset), "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "in" / "m.onnx").write_bytes(made.SerializeToString())
    return tmp_path / "in" / "m.onnx"


OPERATION = [{"replace_head": {"units": 7}}, {"freeze": "all"}, {"insert_dropout": {"hidden": 0.5}}]


class TestStreams:
    @pytest.mark.parametrize("range_copy", [True, False])
    def test_untouched_weights_are_the_same_bytes(
        self, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_copy: bool
    ) -> None:
        if not range_copy:
            monkeypatch.delattr(os, "copy_file_range")
        model = load(single)
        apply(model, OPERATION)
        save(model, tmp_path / "out.onnx")
        before, after = weights(single), weights(tmp_path / "out.onnx")
        assert {n for n in before if before[n] == after.get(n)} == {"w1", "b1"}
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)

    def test_untouched_weights_are_not_read(
        self, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(single)
        apply(model, [{"freeze": "all"}])

        def refuse(*_: object) -> None:
            raise AssertionError("a weight was read")

        for name in ("numpy", "tobytes"):
            monkeypatch.setattr(InlineTensor, name, refuse)
        save(model, tmp_path / "out.onnx")
        monkeypatch.undo()
        assert weights(tmp_path / "out.onnx") == weights(single)

    @pytest.mark.parametrize("error", [18, 22, 95])  # EXDEV, EINVAL, EOPNOTSUPP
    def test_a_system_that_does_not_copy_ranges(
        self, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        original, calls = os.copy_file_range, []

        def half(source: int, target: int, count: int, *places: int) -> int:
            calls.append(count)
            if len(calls) % 2:
                return original(source, target, max(1, count // 2), *places)
            raise OSError(error, "no")

        monkeypatch.setattr(os, "copy_file_range", half)
        save(load(single), tmp_path / "out.onnx")
        assert len(calls) >= 4
        assert weights(tmp_path / "out.onnx") == weights(single)

    def test_in_place(self, single: Path) -> None:
        before = weights(single)
        model = load(single)
        apply(model, OPERATION)
        save(model, single)
        after = weights(single)
        assert {n for n in before if before[n] == after.get(n)} == {"w1", "b1"}
        save(model, single)  # from the file that is gone
        assert weights(single) == after
        assert sorted(p.name for p in single.parent.iterdir()) == ["m.onnx"]

    def test_the_same_bytes_each_time(self, single: Path, tmp_path: Path) -> None:
        for name in ("one.onnx", "two.onnx"):
            model = load(single)
            apply(model, OPERATION)
            save(model, tmp_path / name)
        assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def place_of(path: Path, name: str) -> tuple[str, int]:
    (tensor,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == name)
    entries = {e.key: e.value for e in tensor.external_data}
    return entries["location"], int(entries["offset"])


class TestExternal:
    def test_in_the_same_folder_weights_are_referred_to(self, external: Path) -> None:
        files = {n: (external.parent / n).read_bytes() for n in ("one.bin", "two.bin")}
        model = load(external)
        apply(model, OPERATION)
        save(model, external)
        assert {n: (external.parent / n).read_bytes() for n in files} == files
        assert place_of(external, "w1") == ("one.bin", 4096)
        assert sorted(p.name for p in external.parent.iterdir()) == ["m.onnx", "one.bin", "two.bin"]

    def test_elsewhere_files_and_alignment_are_kept(self, external: Path, tmp_path: Path) -> None:
        model = load(external)
        save(model, tmp_path / "out" / "n.onnx")
        names = ["n.onnx-00001-of-00002.data", "n.onnx-00002-of-00002.data"]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["n.onnx", *names]
        for name, file in (("w1", 0), ("b1", 0), ("w2", 1), ("b2", 1)):
            location, offset = place_of(tmp_path / "out" / "n.onnx", name)
            assert location == names[file]
            assert offset % 4096 == 0
        assert weights(tmp_path / "out" / "n.onnx") == weights(external)
        tensor = model.graph.initializers["w1"].const_value
        assert isinstance(tensor, ExternalTensor)
        external.with_name("one.bin").unlink()
        assert tensor.tobytes() == weights(tmp_path / "out" / "n.onnx")["w1"]

    def test_weights_that_nobody_needs_stay_behind(self, external: Path, tmp_path: Path) -> None:
        model = load(external)
        apply(model, [{"cut": "r"}])
        save(model, tmp_path / "out" / "n.onnx")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["n.onnx", "n.onnx.data"]
        assert set(weights(tmp_path / "out" / "n.onnx")) == {"w1", "b1"}

    def test_shared_weights_are_written_once(self, external: Path, tmp_path: Path) -> None:
        made = onnx.load(external, load_external_data=False)
        copy = onnx.TensorProto()
        copy.CopyFrom(made.graph.initializer[0])
        copy.name = "w3"
        made.graph.initializer.append(copy)
        made.graph.node.add(op_type="Gemm", name="h3", input=["x", "w3"], output=["z"]).attribute.add(
            name="transB", type=2, i=1
        )
        made.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 300]))
        external.write_bytes(made.SerializeToString())
        save(load(external), tmp_path / "out" / "n.onnx")
        assert place_of(tmp_path / "out" / "n.onnx", "w1") == place_of(tmp_path / "out" / "n.onnx", "w3")
        assert weights(tmp_path / "out" / "n.onnx") == weights(external)

    def test_a_constant_in_a_function_comes_along(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "d": 1]> g (float[N] x) => (float[N] y)
            { y = d.f(x) } <domain: "d", opset_import: ["": 17]> f (i) => (o)
            { c = Constant<value = float[2] {3, 4}>() o = Add(i, c) }""")
        tensor = made.functions[0].node[0].attribute[0].t
        tensor.ClearField("float_data")
        (tmp_path / "in" / "w.bin").write_bytes(np.array([5, 6], np.float32).tobytes())
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        (tmp_path / "in" / "m.onnx").write_bytes(made.SerializeToString())
        save(load(tmp_path / "in" / "m.onnx"), tmp_path / "out" / "m.onnx")
        found = onnx.load(tmp_path / "out" / "m.onnx").functions[0].node[0].attribute[0].t
        assert onnx.numpy_helper.to_array(found).tolist() == [5, 6]

    def test_a_weight_file_that_is_gone_is_told(self, external: Path, tmp_path: Path) -> None:
        model = load(external)
        external.with_name("one.bin").unlink()
        with pytest.raises(SurgeryError, match=r"one\.bin: cannot be read \(No such file"):
            save(model, tmp_path / "out" / "n.onnx")
        with pytest.raises(SurgeryError, match=r"one\.bin: cannot be read"):
            model.graph.initializers["w1"].const_value.numpy()  # type: ignore[union-attr]

    def test_a_weight_file_that_is_still_needed_is_not_replaced(
        self, external: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(external)
        with pytest.raises(SurgeryError, match="is the file with the model's weights"):
            save(model, external.with_name("one.bin"))
        external.with_name("one.bin").rename(external.with_name("m.onnx.data"))
        made = onnx.load(external, load_external_data=False)
        for tensor in made.graph.initializer[:2]:
            tensor.external_data[0].value = "m.onnx.data"
        external.write_bytes(made.SerializeToString())
        before = weights(external)
        model = load(external)
        apply(model, [{"replace_head": {"units": 200}}])
        monkeypatch.setattr(writing, "_PROTOBUF_LIMIT", writing._GRAPH_ROOM + 4000)
        save(model, external)
        assert place_of(external, "w1")[0] == "m.onnx.data"
        assert "m.onnx.2.data" in {p.name for p in external.parent.iterdir()}
        assert weights(external)["w1"] == before["w1"]


class TestLink:
    def test_into_another_folder(self, external: Path, tmp_path: Path) -> None:
        model = load(external)
        apply(model, OPERATION)
        save(model, tmp_path / "out" / "n.onnx", link=True)
        data = tmp_path / "out" / "n.onnx.data"
        one = external.with_name("one.bin")
        assert data.read_bytes() == one.read_bytes()
        assert place_of(tmp_path / "out" / "n.onnx", "w1") == ("n.onnx.data", 4096)
        for path in (external, tmp_path / "out" / "n.onnx"):  # both are there still, and once more
            tensor = load(path).graph.initializers["w1"].const_value
            assert tensor is not None
            assert hashlib.sha256(tensor.tobytes()).digest() == hashlib.sha256(one.read_bytes()[4096:244_096]).digest()
        save(load(external), tmp_path / "out" / "n.onnx", link=True)
        assert not list((tmp_path / "out").glob(".*"))

    def test_without_shared_blocks_it_is_a_hard_link(
        self, external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensors.Source, "clone", lambda *_: False)
        external.with_name("one.bin").chmod(0o600)
        for _ in range(2):  # the second time onto itself
            save(load(external), tmp_path / "out" / "n.onnx", link=True)
            made = tmp_path / "out" / "n.onnx-00001-of-00002.data"
            assert os.path.samefile(made, external.with_name("one.bin"))
            assert external.with_name("one.bin").stat().st_mode & 0o777 == 0o600
            assert not list((tmp_path / "out").glob(".*"))
        load(external)

    def test_another_file_system(self, external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def other(*_: object, **__: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(tensors.Source, "clone", lambda *_: False)
        monkeypatch.setattr(os, "link", other)
        with pytest.raises(SurgeryError, match=r"cannot be linked to .*cross-device.*leave --link out"):
            save(load(external), tmp_path / "out" / "n.onnx", link=True)
        assert not list((tmp_path / "out").iterdir())

    def test_nothing_to_link(self, single: Path, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match="nothing to link"):
            save(load(single), tmp_path / "out.onnx", link=True)

    def test_a_big_file_takes_no_time_and_no_memory(self, tmp_path: Path) -> None:
        """A weight of 8 GB, a hole in a file, gets a new head in another folder."""
        (tmp_path / "in").mkdir()
        made = onnx.parser.parse_model(TEXT.replace("N,200", "N,6000000").replace("w1", "big"))
        made.graph.initializer.add(name="big", data_type=1, dims=[300, 6_000_000], data_location=1)
        for name in ("b1", "w2", "b2"):
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(SHAPES[name], np.float32), name))
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(300 * 6_000_000 * 4))):
            made.graph.initializer[0].external_data.add(key=key, value=value)
        onnx.save(made, tmp_path / "in" / "m.onnx")
        with (tmp_path / "in" / "w.bin").open("wb") as file:
            file.truncate(300 * 6_000_000 * 4)
        start = time.process_time()
        model = load(tmp_path / "in" / "m.onnx")
        apply(model, OPERATION)
        save(model, tmp_path / "out" / "m.onnx", link=True)
        assert time.process_time() - start < 2
        assert load(tmp_path / "out" / "m.onnx").graph.initializers["big"].const_value.nbytes == 7_200_000_000  # type: ignore[union-attr]


LIMITED = """
import resource, sys
from surgery.errors import SurgeryError
from surgery.io import load, save
model = load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    save(model, sys.argv[2])
except SurgeryError as error:
    print(error)
"""
SLOW = """
import os, sys, time
from surgery.io import load, save
replace = os.replace
def slow(*names):
    replace(*names)
    print("renamed one", flush=True)
    time.sleep(1)
os.replace = slow
save(load(sys.argv[1]), sys.argv[2])
"""


class TestAllOrNothing:
    @pytest.mark.parametrize("which", ["single", "external"])
    @pytest.mark.parametrize("limit", [100, 100_000, 250_000])
    def test_a_disk_that_is_full_leaves_the_old_files(
        self, request: pytest.FixtureRequest, tmp_path: Path, which: str, limit: int
    ) -> None:
        source = request.getfixturevalue(which)
        target = tmp_path / "out" / "m.onnx"
        model = load(source)
        apply(model, [{"cut": "r"}])
        save(model, target)
        before = {p.name: p.read_bytes() for p in target.parent.iterdir()}
        command = [sys.executable, "-c", LIMITED, str(source), str(target), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True)
        if limit < 250_000 or which == "single":
            assert "cannot be written (File too large)" in done.stdout, done.stderr
            assert {p.name: p.read_bytes() for p in target.parent.iterdir()} == before
        else:
            assert not done.stdout
            assert weights(target) == weights(source)

    def test_a_real_full_disk(self, single: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path / "disk")]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted by the superuser only")
        try:
            target = tmp_path / "disk" / "m.onnx"
            target.write_bytes(b"old")
            with pytest.raises(SurgeryError, match="No space left on device"):
                save(load(single), target)
            assert target.read_bytes() == b"old"
            assert list(target.parent.iterdir()) == [target]
        finally:
            subprocess.run(["umount", str(tmp_path / "disk")], check=True)

    def test_processes_that_write_the_same_output(self, external: Path, tmp_path: Path) -> None:
        """One renames its three files slowly, another its own meanwhile: what is there is all of one of them."""
        other = tmp_path / "other" / "m.onnx"
        shutil.copytree(external.parent, other.parent)
        for name in ("one.bin", "two.bin"):
            other.with_name(name).write_bytes((-np.fromfile(external.with_name(name), np.float32)).tobytes())
        expected = [weights(external), weights(other)]
        target = tmp_path / "out" / "m.onnx"
        command = [sys.executable, "-c", SLOW, str(external), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            save(load(other), target)
        assert process.returncode == 0
        assert weights(target) in expected
        assert not list(target.parent.glob(".*"))
