"""Time and memory of operating on big models: a new head, the rest frozen, dropout, in files of 531 MB and 6 GB.

.venv/bin/python -m benchmarks.surgery_io [--small] [--repetitions 3] [--folder DIR]

Beside Surgery: onnx-graphsurgeon, onnx with onnx.helper, onnx-ir alone, and cp, each in a process of its own. Freezing
is a mark, which the others do not have; they do the rest. `--small` makes the models 20 times smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "out" / "peers"
GRAPHSURGEON = "onnx-graphsurgeon==0.6.1"
CLASSES = 10
VGG = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # Simonyan and Zisserman 2014, configuration A
ALIGNMENT = 4096


# Models


def vgg11(width: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The graph of VGG-11, with fully connected layers of `width`, and its weights' shapes."""
    nodes: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    last, channels, number = "x", 3, 0
    for block, widths in enumerate(VGG, start=1):
        for units in widths:
            number += 1
            shapes |= {f"conv{number}_w": (units, channels, 3, 3), f"conv{number}_b": (units,)}
            nodes.append(f"conv{number} = Conv<pads = [1,1,1,1]>({last}, conv{number}_w, conv{number}_b)")
            nodes.append(f"relu{number} = Relu(conv{number})")
            last, channels = f"relu{number}", units
        nodes.append(f"pool{block} = MaxPool<kernel_shape = [2,2], strides = [2,2]>({last})")
        last = f"pool{block}"
    nodes.append(f"flat = Flatten({last})")
    last, inputs = "flat", 512 * 49
    for index, units in ((6, width), (7, width), (8, 1000)):
        shapes |= {f"fc{index}_w": (units, inputs), f"fc{index}_b": (units,)}
        nodes.append(f"fc{index} = Gemm<transB = 1>({last}, fc{index}_w, fc{index}_b)")
        last, inputs = f"fc{index}", units
        if index < 8:
            nodes.append(f"drop{index} = Relu(fc{index})")
            last = f"drop{index}"
    nodes.append(f"y = Softmax({last})")
    return _proto("(float[N,3,224,224] x) => (float[N,1000] y)", nodes), shapes


def transformer(blocks: int, width: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The graph of an encoder of `blocks` blocks (a stand-in: each token attends to itself), and its shapes."""
    nodes: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    last = "x"
    for i in range(blocks):
        sizes = {"q": (width, 2 * width), "o": (2 * width, width), "up": (width, 4 * width), "down": (4 * width, width)}
        shapes |= {f"b{i}_{name}_w": shape for name, shape in sizes.items()}
        nodes += [
            f"b{i}_q = MatMul({last}, b{i}_q_w)",
            f"b{i}_o = MatMul(b{i}_q, b{i}_o_w)",
            f"b{i}_s = Add(b{i}_o, {last})",
            f"b{i}_up = MatMul(b{i}_s, b{i}_up_w)",
            f"b{i}_relu = Relu(b{i}_up)",
            f"b{i}_down = MatMul(b{i}_relu, b{i}_down_w)",
            f"b{i} = Add(b{i}_down, b{i}_s)",
        ]
        last = f"b{i}"
    shapes |= {"head_w": (1000, width), "head_b": (1000,)}
    nodes += [f"head = Gemm<transB = 1>({last}, head_w, head_b)", "y = Softmax(head)"]
    return _proto(f"(float[N,{width}] x) => (float[N,1000] y)", nodes), shapes


def _proto(signature: str, nodes: list[str]) -> Any:
    import onnx

    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {" ".join(nodes)} }}')
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


def write_single(path: Path, proto: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Writes a model with random weights in its file."""
    import onnx

    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32) * np.float32(0.01), name)
        )
    onnx.save(proto, path)


def write_external(path: Path, proto: Any, shapes: dict[str, tuple[int, ...]], random: bool) -> None:
    """Writes a model with its weights in another file: random, or zeros that take no room on the disk."""

    rng, end = np.random.default_rng(0), 0
    with path.with_suffix(".bin").open("wb") as file:
        for name, shape in shapes.items():
            end = -(-end // ALIGNMENT) * ALIGNMENT
            size = 4 * int(np.prod(shape))
            tensor = proto.graph.initializer.add(name=name, data_type=1, dims=shape, data_location=1)
            entries = (("location", path.with_suffix(".bin").name), ("offset", str(end)), ("length", str(size)))
            for key, value in entries:
                tensor.external_data.add(key=key, value=value)
            if random:
                file.seek(end)
                file.write((rng.standard_normal(shape, np.float32) * np.float32(0.01)).tobytes())
            end += size
        file.truncate(end)
    path.write_bytes(proto.SerializeToString())


# Ways. Each imports what it needs and returns what is timed.


def surgery_way(link: bool) -> Callable[[Path, Path], None]:
    """Surgery."""
    from surgery.io import load, save
    from surgery.recipe import Recipe, apply

    passes = [{"replace_head": {"units": CLASSES}}, {"freeze": "all"}, {"unfreeze": "head"},
              {"insert_dropout": {"hidden": 0.5}}]  # fmt: skip
    recipe = Recipe.model_validate({"passes": passes})

    def work(source: Path, target: Path) -> None:
        model = load(source)
        apply(model, recipe)
        save(model, target, link=link)

    return work


def helper_way() -> Callable[[Path, Path], None]:
    """onnx and onnx.helper."""
    import onnx
    from onnx import helper, numpy_helper

    def work(source: Path, target: Path) -> None:
        model = onnx.load(source)
        graph = model.graph
        head = [node for node in graph.node if node.op_type == "Gemm"][-1]
        for tensor in graph.initializer:
            if tensor.name in head.input[1:]:
                shape = [CLASSES, *tensor.dims[1:]]
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), tensor.name))
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES
        for node in [n for n in graph.node if n.op_type == "Relu"]:
            name = f"{node.name}/dropout"
            for user in graph.node:
                user.input[:] = [name if i == node.output[0] else i for i in user.input]
            place = list(graph.node).index(node) + 1
            graph.node.insert(place, helper.make_node("Dropout", [node.output[0]], [name], name=name))
        external = source.with_suffix(".bin").exists()
        onnx.save(model, target, save_as_external_data=external, location=f"{target.name}.data")

    return work


def graphsurgeon_way() -> Callable[[Path, Path], None]:
    """onnx-graphsurgeon."""
    sys.path.append(str(PEERS))
    import onnx
    import onnx_graphsurgeon as gs

    def work(source: Path, target: Path) -> None:
        graph = gs.import_onnx(onnx.load(source))
        head = [node for node in graph.nodes if node.op == "Gemm"][-1]
        for index in (1, 2):
            shape = [CLASSES, *head.inputs[index].shape[1:]]
            head.inputs[index] = gs.Constant(f"new_{index}", np.zeros(shape, np.float32))
        graph.outputs[0].shape = [graph.outputs[0].shape[0], CLASSES]
        for node in [n for n in graph.nodes if n.op == "Relu"]:
            made = gs.Variable(f"{node.name}/dropout", np.float32)
            for user in list(node.outputs[0].outputs):
                user.inputs = [made if value is node.outputs[0] else value for value in user.inputs]
            graph.nodes.append(gs.Node("Dropout", made.name, inputs=[node.outputs[0]], outputs=[made]))
        external = source.with_suffix(".bin").exists()
        model = gs.export_onnx(graph.cleanup().toposort())
        onnx.save(model, target, save_as_external_data=external, location=f"{target.name}.data")

    return work


def onnx_ir_way() -> Callable[[Path, Path], None]:
    """onnx-ir alone."""
    import onnx_ir as ir

    def work(source: Path, target: Path) -> None:
        model = ir.load(source)
        graph = model.graph
        head = [node for node in graph if node.op_type == "Gemm"][-1]
        for index in (1, 2):
            old = head.inputs[index]
            assert old is not None
            assert old.shape is not None
            array = np.zeros([CLASSES, *old.shape.numpy()[1:]], np.float32)
            new = ir.Value(name=f"new_{index}", const_value=ir.tensor(array, name=f"new_{index}"))
            head.replace_input_with(index, new)
            graph.register_initializer(new)
            graph.initializers.pop(str(old.name))
        graph.outputs[0].shape = ir.Shape(["N", CLASSES])
        for node in [n for n in graph if n.op_type == "Relu"]:
            users = list(node.outputs[0].uses())
            made = ir.node("Dropout", [node.outputs[0]], name=f"{node.name}/dropout")
            graph.insert_after(node, made)
            for user, index in users:
                user.replace_input_with(index, made.outputs[0])
        external = source.with_suffix(".bin").exists()
        ir.save(model, target, external_data=f"{target.name}.data" if external else None)

    return work


WAYS: dict[str, Callable[[], Callable[[Path, Path], None]]] = {
    "surgery": lambda: surgery_way(link=False),
    "surgery --link": lambda: surgery_way(link=True),
    "onnx-graphsurgeon": graphsurgeon_way,
    "onnx + onnx.helper": helper_way,
    "onnx-ir": onnx_ir_way,
}


# Measuring


def _peak() -> float:
    """Megabytes that this process held at most; ru_maxrss begins with its parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def run_way(way: str, source: Path, target: Path) -> None:
    """In a process of its own: does the work, and prints its seconds and peak memory."""
    work = WAYS[way]()
    start = time.perf_counter()
    work(source, target)
    print(json.dumps({"work": time.perf_counter() - start, "memory": _peak()}))


def measure(way: str, source: Path, folder: Path, repetitions: int) -> dict[str, Any]:
    """The medians of some runs of a way, the first not counted; why it failed, if it did."""
    runs: list[dict[str, float]] = []
    for _ in range(repetitions + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start = time.perf_counter()
        if way == "cp":
            files = [source, *([source.with_suffix(".bin")] if source.with_suffix(".bin").exists() else [])]
            subprocess.run(["cp", "--sparse=never", *map(str, files), str(folder)], check=True)
            seconds = time.perf_counter() - start
            runs.append({"work": seconds, "whole": seconds, "memory": 0.0})
            continue
        command = [sys.executable, "-m", "benchmarks.surgery_io", "--way", way, str(source), str(folder / "out.onnx")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
        seconds = time.perf_counter() - start
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
            return {"way": way, "error": reason[:150]}
        runs.append(json.loads(done.stdout.splitlines()[-1]) | {"whole": seconds})
        _check(folder / "out.onnx")
    return {"way": way} | {key: statistics.median(run[key] for run in runs[1:]) for key in runs[0]}


def _check(path: Path) -> None:
    """Checks that the head has its new size and that dropout is there."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    head = [node for node in graph.node if node.op_type == "Gemm"][-1]
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == head.input[1])
    if weight.dims[0] != CLASSES or not any(node.op_type == "Dropout" for node in graph.node):
        raise RuntimeError(f"{path} is not what was asked for")


def main() -> None:
    """Makes the models, measures, and prints a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room for 20 GB; a temporary one by default")
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        way, source, target = arguments.way
        run_way(way, Path(source), Path(target))
        return
    if not (PEERS / "onnx_graphsurgeon").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS), GRAPHSURGEON]
        subprocess.run(command, check=False)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        width, big = (256, (2, 1024)) if arguments.small else (4096, (8, 4096))
        write_single(folder / "vgg11.onnx", *vgg11(width))
        write_external(folder / "vgg11-external.onnx", *vgg11(width), random=True)
        write_external(folder / "transformer.onnx", *transformer(*big), random=False)
        for model in ("vgg11", "vgg11-external", "transformer"):
            source = folder / f"{model}.onnx"
            external = source.with_suffix(".bin").exists()
            size = source.stat().st_size + (source.with_suffix(".bin").stat().st_size if external else 0)
            print(f"\n{model}, {size / 1e6:,.0f} MB{', weights in another file' if external else ''}\n")
            print("| way | work, s | with start, s | peak memory, MB |\n| --- | ---: | ---: | ---: |")
            for way in ["cp", *(w for w in WAYS if external or "link" not in w)]:
                found = measure(way, source, folder / "out", arguments.repetitions)
                if "error" in found:
                    print(f"| {way} | {found['error']} | | |", flush=True)
                else:
                    memory = f"{found['memory']:,.0f}" if found["memory"] else ""
                    print(f"| {way} | {found['work']:.2f} | {found['whole']:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
