"""Other ways of training an ONNX model: onnxruntime-training's on-device API, onnx-ad's gradients, onnxsim's loop."""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper

from benchmarks.work import LEARNING_RATE, NETS, Build, Run, Task, load_batch

__all__ = ["on_device", "onnx_ad", "onnxsim"]

_IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads


def _parameters(task: Task, model: onnx.ModelProto) -> list[str]:
    """The names of what is trained, running statistics not among them."""
    names = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims)]
    if task.case == "head":
        return [n for n in names if n.startswith(NETS[task.net].head + ".")]
    return [n for n in names if not n.endswith(("running_mean", "running_var"))]


def on_device() -> Build:
    """onnxruntime.training.api, from artifacts of onnxruntime.training.artifacts."""
    from onnxruntime.training import api, artifacts

    def build(task: Task) -> Run:
        import onnxruntime

        model = onnx.load(task.model)
        wanted = _parameters(task, model)
        frozen = [t.name for t in model.graph.initializer if t.name not in wanted]
        folder = tempfile.mkdtemp()
        artifacts.generate_artifacts(
            model,
            requires_grad=wanted,
            frozen_params=frozen,
            loss=artifacts.LossType.CrossEntropyLoss,
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=folder,
        )
        paths = [f"{folder}/{name}_model.onnx" for name in ("training", "optimizer")]
        for path in paths:
            made = onnx.load(path)
            made.ir_version = min(made.ir_version, _IR_VERSION)
            onnx.save(made, path)
        state = api.CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        module = api.Module(paths[0], state)
        optimizer = api.Optimizer(paths[1], module)
        optimizer.set_learning_rate(LEARNING_RATE)
        examples, targets = load_batch(task)
        module.train()

        def step() -> float:
            loss = module(examples, targets)
            optimizer.step()
            module.lazy_reset_grad()
            return float(loss)

        notes = ["plain SGD: it has no momentum"]
        if task.case == "head" and any(node.op_type == "BatchNormalization" for node in model.graph.node):
            notes.append("BatchNormalization by the batch's statistics: it cannot keep them")
        return Run(f"onnxruntime-training {onnxruntime.__version__}", step, "; ".join(notes))

    return build


def _inferring(task: Task, model: onnx.ModelProto) -> list[str]:
    """Switches Dropout off; returns in words which operators train as they infer, because there is nothing else."""
    for node in model.graph.node:
        if node.op_type == "Dropout":
            del node.input[1:]
    used = {name for node in model.graph.node for name in node.input}
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] not in used]:
        model.graph.node.remove(node)
    present = {node.op_type for node in model.graph.node}
    notes = (
        ["BatchNormalization by frozen statistics"] if "BatchNormalization" in present and task.case == "all" else []
    )
    return [*notes, "Dropout does not drop"] if "Dropout" in present else notes


def _with_loss(model: onnx.ModelProto, classes: int, one_hot: bool) -> None:
    """Adds the input ``target`` and the scalar ``loss``: the mean of −log softmax(logits)[target]."""
    graph = model.graph
    logits = graph.output[0].name
    if one_hot:
        graph.input.append(oh.make_tensor_value_info("target", onnx.TensorProto.FLOAT, ["batch", classes]))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(-float(classes), np.float32), "minus"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
        graph.node.extend(
            [
                oh.make_node("Exp", [logits], ["exp"]),  # the loss in operators that onnxsim has rules for
                oh.make_node("ReduceSum", ["exp", "axes"], ["sum"], keepdims=1),
                oh.make_node("Log", ["sum"], ["log"]),
                oh.make_node("Sub", [logits, "log"], ["log_p"]),
                oh.make_node("Mul", ["log_p", "target"], ["chosen"]),
                oh.make_node("ReduceMean", ["chosen"], ["mean"], keepdims=0),
                oh.make_node("Mul", ["mean", "minus"], ["loss"]),
            ]
        )
    else:
        graph.input.append(oh.make_tensor_value_info("target", onnx.TensorProto.INT64, ["batch"]))
        graph.node.append(oh.make_node("SoftmaxCrossEntropyLoss", [logits, "target"], ["loss"]))
    del graph.output[:]
    graph.output.append(oh.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, []))


def _fixed(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The model for one batch size, shapes inferred."""
    for value in model.graph.input:
        if value.type.tensor_type.shape.dim[0].dim_param == "batch":
            value.type.tensor_type.shape.dim[0].dim_value = size
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def onnx_ad() -> Build:
    """The gradients of onnx_ad.reverse, on the stock runtime; without an update."""
    import onnxruntime

    peer = importlib.import_module("onnx_ad")

    def build(task: Task) -> Run:
        model = onnx.load(task.model)
        note = "; ".join(["gradients only: it has no update", *_inferring(task, model)])
        wanted = _parameters(task, model)
        _with_loss(model, NETS[task.net].classes, one_hot=False)
        examples, targets = load_batch(task)
        feeds: dict[str, Any] = {"data": examples, "target": targets}
        for tensor in list(model.graph.initializer):
            if tensor.name in wanted:
                feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
                model.graph.input.append(oh.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
                model.graph.initializer.remove(tensor)
        model = peer.reverse(_fixed(model, len(targets)), inputs=wanted, outputs=["loss"], layout="onnx")
        model.ir_version = _IR_VERSION
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        feeds["adj_loss"] = np.ones(1, np.float32)
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")

        def step() -> float:
            session.run_with_iobinding(binding)
            return float(binding.get_outputs()[0].numpy())

        return Run(f"onnx-ad {_version('onnx-ad')}, onnxruntime {onnxruntime.__version__}", step, note)

    return build


def onnxsim() -> Build:
    """onnxsim.compile_training_loop, on the stock runtime."""
    import onnxruntime

    compile_training_loop = importlib.import_module("onnxsim.compile_training").compile_training_loop

    def build(task: Task) -> Run:
        model = onnx.load(task.model)
        note = "; ".join(_inferring(task, model))
        _unflattened(model.graph)
        wanted = _parameters(task, model)
        classes = NETS[task.net].classes
        _with_loss(model, classes, one_hot=True)
        examples, targets = load_batch(task)
        loop = compile_training_loop(_fixed(model, len(targets)), "loss", wanted, optimizer="sgd_momentum")
        feeds = {"data": examples, "target": np.eye(classes, dtype=np.float32)[targets]}
        runtime = f"onnxsim {_version('onnxsim')}, onnxruntime {onnxruntime.__version__}"
        return Run(runtime, lambda: loop(feeds, LEARNING_RATE), note)

    return build


def _unflattened(graph: onnx.GraphProto) -> None:
    """Turns Flatten, which onnxsim has no rule for, into the Reshape that it is here."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), "rows"))
    for node in graph.node:
        if node.op_type == "Flatten":
            node.CopyFrom(oh.make_node("Reshape", [node.input[0], "rows"], node.output, name=node.name))


def _version(name: str) -> str:
    return importlib.metadata.version(name)
