"""Damaged, wrong and hostile TensorFlow files: one clear line, in bounded time and memory, and nothing of them run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")

from converters import convert
from converters.tensorflow.convert import convert_tensorflow
from surgery.errors import SurgeryError
from tests.converters import tensorflow_nets as nets

tf = nets.tf
v1 = tf.compat.v1


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(SurgeryError, match=message) as error:
        convert(path, **options)
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)


def write(folder: Path, graph: Any, name: str = "net.pb") -> Path:
    path = folder / name
    path.write_bytes(graph.SerializeToString())
    return path


def small(x: Any) -> Any:
    weight = tf.constant(np.ones((3, 2), np.float32), name="weight")
    return tf.identity(tf.matmul(x, weight), name="out")


def graph_of(build: Any = small) -> Any:
    with tf.Graph().as_default() as graph:
        build(v1.placeholder(tf.float32, [None, 3], name="x"))
        return graph.as_graph_def()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"<html><body>404</body></html>", "damaged or not TensorFlow's"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged or not TensorFlow's|has no nodes"),
    (b"\x08\x01", "has no nodes"),
])  # fmt: skip
def test_files_that_are_no_graph(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("net.pb", "saved_model.pb", "model.meta"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / "model.index").write_bytes(content)
        refused(folder / name, message if name != "saved_model.pb" else f"{message}|has no graph")


def test_a_graph_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = graph_of().SerializeToString()
    path = tmp_path / "net.pb"
    for length in range(1, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        try:
            convert_tensorflow(path)
        except SurgeryError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_graphs_that_cannot_be_converted(tmp_path: Path) -> None:
    refused(write(tmp_path, graph_of(lambda x: v1.get_variable("w", [3]) + x)), r"not frozen.*\(w\).*\.meta")
    refused(write(tmp_path, graph_of(lambda x: tf.constant(1.0))), "outputs cannot be told.*outputs=")
    refused(
        write(tmp_path, graph_of(lambda x: v1.py_func(lambda a: a, [x], tf.float32))),
        "does not know the operators PyFunc",
    )
    with tf.Graph().as_default() as graph:
        tf.tanh(v1.placeholder(tf.float32, name="x"), name="out")
    refused(write(tmp_path, graph.as_graph_def()), "does not say the shape of its input 'x'.*--shape")
    path = write(tmp_path, graph_of())
    refused(path, r"has no input 'y'", inputs="y")
    refused(path, r"has no output 'Out'; did you mean 'out'", outputs=["Out"])
    refused(path, "no signatures", signature="serving_default")
    refused(path, "no input takes the shape for y; it has x", shape="y=3")
    for option in ({"batch": 0}, {"batch": True}, {"inputs": 3}, {"outputs": []}, {"weights": path}):
        with pytest.raises(SurgeryError, match=next(iter(option))):
            convert(path, **option)


def test_checkpoints_that_lack_files(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        tf.matmul(x, v1.get_variable("w", [3, 2]), name="out")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
    index, data = tmp_path / "model.index", tmp_path / "model.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:10])
    refused(tmp_path / "model.meta", "'w' cannot be read")
    data.write_bytes(bytes(len(whole)))  # its checksum is in the index
    refused(tmp_path / "model.meta", "'w' cannot be read")
    data.unlink()
    refused(tmp_path / "model.meta", "cannot be read")
    index.unlink()
    refused(tmp_path / "model.meta", r"model\.index")
    shutil.move(tmp_path / "model.meta", tmp_path / "other.meta")
    index.write_bytes(b"x")
    refused(index, r"model\.meta, does not lie next to it")


def test_a_constant_that_is_declared_huge_takes_no_memory(tmp_path: Path) -> None:
    graph = graph_of()
    node = next(node for node in graph.node if node.name == "weight")
    tensor = node.attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.float_val[:] = [1.0]
    tensor.tensor_shape.dim[1].size = 2**40
    refused(write(tmp_path, graph), "'weight' is declared with")


@pytest.mark.parametrize("kind", ["fill", "range", "tile"])
def test_what_constants_make_is_bounded(tmp_path: Path, kind: str) -> None:
    """TensorFlow's optimizer and tf2onnx compute what needs no input."""

    def bomb(x: Any) -> Any:
        made = {
            "fill": lambda: tf.fill([2**34], 1.0),
            "range": lambda: tf.cast(tf.range(2**30), tf.float32),
            "tile": lambda: tf.tile(tf.constant(np.ones(1000, np.float32)), [2**24]),
        }
        return tf.add(x, tf.reduce_sum(made[kind]()), name="out")

    refused(write(tmp_path, graph_of(bomb)), "numbers of constants")


def test_nothing_of_a_graph_is_run(tmp_path: Path) -> None:
    """What TensorFlow's own loaders run: the graph's initialization, and what restores its variables."""
    marker = tmp_path / "marker"
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="x")
        evil = tf.io.write_file(str(marker), "run")
        y = tf.matmul(x, v1.get_variable("w", [3, 2]))
        with tf.control_dependencies([evil]):
            out = tf.identity(y, name="out")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "saved"))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"out": out})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=evil)
        builder.save()
        saver = v1.train.Saver()
        saver.save(session, str(tmp_path / "model"))
    marker.unlink(missing_ok=True)
    for source in ("saved", "model.meta"):
        model = convert(tmp_path / source, outputs="out")
        assert [node.op_type for node in model.graph] == ["MatMul"]
    assert not marker.exists()


CHANGED = """
import sys
from pathlib import Path
from random import Random
from converters.tensorflow.convert import convert_tensorflow
from surgery.errors import SurgeryError

whole, path, random, converted = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), Random(3), 0
for _ in range(300):
    content = bytearray(whole)
    for _ in range(random.randint(1, 3)):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)
    try:
        convert_tensorflow(path)
        converted += 1
    except SurgeryError as error:
        assert "\\n" not in str(error)
print(converted)
"""


@pytest.mark.slow
def test_changed_graphs_are_converted_or_refused(tmp_path: Path) -> None:
    """Bytes changed at random. A process of its own: TensorFlow's C++ would abort at a graph that Python let pass."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        y = tf.nn.bias_add(tf.nn.conv2d(x, np.ones((3, 3, 3, 2), np.float32), 2, "SAME"), np.ones(2, np.float32))
        tf.nn.softmax(tf.reshape(tf.nn.max_pool2d(y, 2, 2, "VALID"), [-1, 8]), name="out")
        (tmp_path / "whole.pb").write_bytes(graph.as_graph_def().SerializeToString(deterministic=True))
    command = [sys.executable, "-c", CHANGED, str(tmp_path / "whole.pb"), str(tmp_path / "changed.pb")]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=root)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) > 10
