"""Proof of gradient rules: a model of one operator is differentiated, run, and compared with independent oracles.

The oracles are PyTorch's autograd through an expression that the test writes, central differences of the operator as
the installed ONNX Runtime computes it, and, where that runtime is the onnxruntime-training build, its own
GradientGraphBuilder for the operators it gets right. `check` runs them all.

With the environment variable SURGERY_PROOFS set to a path, each proof that held is appended there as a line of JSON:
``{"operator": "Conv", "opset": 17, "runtime": "onnxruntime 1.32.0 (CPU)", "kernels": "standard", "proof": "pytorch"}``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from surgery import runtime
from surgery.autodiff import backward, registered
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes

__all__ = ["BUILDER_IS_RIGHT", "Operator", "check", "gradients", "spread"]

# What onnxruntime-training's own gradient builder was measured to get right.
BUILDER_IS_RIGHT = frozenset(
    "Add AveragePool Cast Clip Concat Conv Div Erf Expand Gather GatherND Gelu Gemm LeakyRelu LogSoftmax MatMul Max "  # noqa: SIM905
    "MaxPool Min Mul Pad Pow ReduceL2 ReduceMean ReduceSum Relu Reshape Sigmoid Slice Softmax Split Sub Tanh Tile "
    "Transpose Where".split()
)

Arrays = Sequence[np.ndarray | None]
TorchFunction = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Operator:
    """A model of one operator.

    Attributes:
        op_type: Its type.
        inputs: The value of each input, None for an optional one that is absent.
        attributes: Its attributes: numbers, strings, lists; arrays are tensors.
        opset: The version of the default operator set.
        outputs: How many outputs it has.
        through: The outputs that get a gradient; by default all of a float type.
        wrt: The inputs to differentiate by; by default all of a float type.
        fed: The inputs of other types that are fed at run time; the others of them are initializers.
        symbolic: Makes dimensions of the fed inputs unknown beforehand: all of them (True), or as said for some
            inputs, by index, as in ``{0: ["batch", 3, "height", "width"]}``.
        domain: The operator's domain.
    """

    op_type: str
    inputs: Arrays
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    through: Sequence[int] | None = None
    wrt: Sequence[int] | None = None
    fed: Sequence[int] = ()
    symbolic: bool | Mapping[int, Sequence[int | str]] = False
    domain: str = ""

    def differentiated(self) -> list[int]:
        """The indices of the inputs to differentiate by."""
        floats = [i for i, v in enumerate(self.inputs) if v is not None and v.dtype.kind == "f"]
        return floats if self.wrt is None else list(self.wrt)

    def feeds(self, dtype: type) -> dict[str, np.ndarray]:
        """What to feed a session, with floats as `dtype`."""
        return {f"x{i}": _as(v, dtype) for i, v in enumerate(self.inputs) if v is not None and self._is_fed(i)}

    def _is_fed(self, index: int) -> bool:
        value = self.inputs[index]
        return value is not None and (value.dtype.kind == "f" or index in self.fed)

    def model(self, dtype: type) -> ir.Model:
        """The model, its inputs x0, x1, …, its outputs y0, y1, …, shapes inferred."""
        values: list[ir.Value | None] = []
        graph_inputs, initializers = [], []
        for index, array in enumerate(self.inputs):
            if array is None:
                values.append(None)
                continue
            array = _as(array, dtype)
            value = ir.val(f"x{index}", ir.DataType.from_numpy(array.dtype), self._shape(index, array))
            if self._is_fed(index):
                graph_inputs.append(value)
            else:
                value.const_value = ir.tensor(array, name=value.name)
                initializers.append(value)
            values.append(value)
        attributes = {k: ir.tensor(v) if isinstance(v, np.ndarray) else v for k, v in self.attributes.items()}
        node = ir.node(
            self.op_type, values, attributes, domain=self.domain, num_outputs=self.outputs, name=f"the_{self.op_type}"
        )
        for index, output in enumerate(node.outputs):
            output.name = f"y{index}"
        imports = {"": self.opset} | ({self.domain: 1} if self.domain else {})
        graph = ir.Graph(
            graph_inputs, node.outputs, nodes=[node], initializers=initializers, opset_imports=imports, name="one"
        )
        model = ir.Model(graph, ir_version=IR_VERSION)
        infer_shapes(model)
        return model

    def _shape(self, index: int, array: np.ndarray) -> list[int | str]:
        if self.symbolic is True and self._is_fed(index):
            return [f"x{index}_{axis}" for axis in range(array.ndim)]
        if isinstance(self.symbolic, Mapping) and index in self.symbolic:
            return list(self.symbolic[index])
        return list(array.shape)


def spread(rng: np.random.Generator, *shape: int, gap: float = 0.05) -> np.ndarray:
    """Values around zero that are all at least `gap` apart and `gap` / 2 from zero: no kink or tie is near."""
    count = int(np.prod(shape))
    values = (np.arange(count) - count // 2 + 0.5) * gap
    return rng.permutation(values).reshape(shape).astype(np.float32)


def gradients(
    operator: Operator, cotangents: Mapping[int, np.ndarray], *, dtype: type = np.float32, fused: bool = False
) -> dict[int, np.ndarray]:
    """Differentiates by `surgery.autodiff.backward`, runs, and returns the gradient of each differentiated input."""
    model = operator.model(dtype)
    graph = model.graph
    inputs = {v.name: v for v in graph.inputs}
    targets, seeds = {}, {}
    for index in cotangents:
        output = graph.outputs[index]
        seed = ir.val(f"dy{index}", output.dtype, output.shape)
        graph.inputs.append(seed)
        targets[output] = seed
        seeds[f"dy{index}"] = cotangents[index].astype((output.dtype or ir.DataType.FLOAT).numpy())
    wrt = {i: inputs[f"x{i}"] for i in operator.differentiated()}
    found = backward(graph, targets, list(wrt.values()), fused=fused)
    missing = [v.name for v in wrt.values() if v not in found]
    assert not missing, f"no gradient for {missing}"
    for value, gradient in found.items():
        assert gradient.shape == value.shape, f"{value.name}: {gradient.shape} is not {value.shape}"
        assert gradient.dtype == value.dtype
    graph.outputs[:] = [Emitter(graph, f"out{i}/").Identity(found[v]) for i, v in wrt.items()]
    for output, value in zip(graph.outputs, wrt.values(), strict=True):
        output.shape, output.dtype = value.shape, value.dtype
    session = runtime.session(model, ["CPUExecutionProvider"], threads=1)
    results = dict(zip(wrt, session.run(None, operator.feeds(dtype) | seeds), strict=True))
    for index, result in results.items():
        expected = operator.inputs[index]
        assert expected is not None
        assert result.shape == expected.shape, f"gradient of input {index}: {result.shape} is not {expected.shape}"
    return results


def check(
    operator: Operator,
    expression: TorchFunction | None,
    *,
    differences: bool = True,
    double: bool = True,
    builder: bool = True,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> None:
    """Asserts that the gradients of `operator` agree with every oracle that applies, in standard and fused kernels.

    Args:
        operator: What to differentiate.
        expression: The same computation in PyTorch: takes a tensor for each input (None where absent) and returns the
            tensor, or the tensors, of the outputs of `Operator.through`.
        differences: Compare with central differences; not for random operators.
        double: Take differences in float64 where the runtime has the kernels; some of them round to float32 inside.
        builder: Compare with onnxruntime-training's gradient builder where it is installed and right.
        tolerance: Relative error allowed in float32; also of the largest element.
        seed: Of the gradients of the outputs and the directions of the differences.
    """
    rng = np.random.default_rng([seed, 1])  # a stream that no test draws its inputs from
    forward = _Forward(operator, np.float32)
    outputs = forward(operator.inputs)
    through = operator.through
    if through is None:
        through = [i for i, y in enumerate(outputs) if y.dtype.kind == "f"]
    cotangents = {i: rng.standard_normal(outputs[i].shape).astype(np.float32) for i in through}
    expected = None
    if expression is not None:
        expected = _torch(operator, expression, cotangents, {i: outputs[i] for i in through}, tolerance)
    for fused in [False, True] if _fused(operator) else [False]:
        kernels = "fused" if fused else "standard"
        found = gradients(operator, cotangents, fused=fused)
        if expected is not None:
            for i, gradient in found.items():
                _close(gradient, expected[i], tolerance, f"PyTorch, {kernels}, input {i}")
            _record(operator, kernels, "pytorch")
        for i in found if len(found) > 1 else []:
            alone = gradients(dataclasses.replace(operator, wrt=[i]), cotangents, fused=fused)
            _close(alone[i], found[i], tolerance, f"differentiated alone, {kernels}, input {i}")
        if differences:
            _check_differences(operator, cotangents, found, rng, kernels, fused, double)
    if builder and runtime.has_training_kernels() and operator.op_type in BUILDER_IS_RIGHT and not operator.domain:
        built = _built(operator, cotangents)
        for i, gradient in gradients(operator, cotangents).items():
            _close(gradient, built[i], tolerance, f"GradientGraphBuilder, input {i}")
        _record(operator, "standard", "builder")


def _fused(operator: Operator) -> bool:
    return runtime.has_training_kernels() and operator.op_type in registered(fused=True)


def _as(array: np.ndarray, dtype: type) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    scale = float(np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-2), err_msg=what)


class _Forward:
    """The operator itself on the installed runtime."""

    def __init__(self, operator: Operator, dtype: type) -> None:
        self._dtype, self._operator = dtype, operator
        self._session = runtime.session(operator.model(dtype), ["CPUExecutionProvider"], threads=1)

    def __call__(self, inputs: Arrays) -> list[np.ndarray]:
        feeds = dataclasses.replace(self._operator, inputs=inputs).feeds(self._dtype)
        return list(self._session.run(None, feeds))


def _torch(
    operator: Operator,
    expression: TorchFunction,
    cotangents: Mapping[int, np.ndarray],
    outputs: Mapping[int, np.ndarray],
    tolerance: float,
) -> dict[int, np.ndarray]:
    wrt = operator.differentiated()
    tensors = [
        None if v is None else torch.tensor(_as(v, np.float64), requires_grad=i in wrt)
        for i, v in enumerate(operator.inputs)
    ]
    results = expression(*tensors)
    results = results if isinstance(results, tuple | list) else [results]
    for result, (index, output) in zip(results, outputs.items(), strict=True):
        _close(output, result.detach().numpy(), tolerance, f"the PyTorch expression itself, output {index}")
    grads = torch.autograd.grad(
        results,
        [t for i in wrt if (t := tensors[i]) is not None],
        [torch.tensor(c, dtype=torch.float64) for c in cotangents.values()],
        allow_unused=True,
    )
    return {i: np.zeros_like(operator.inputs[i]) if g is None else g.numpy() for i, g in zip(wrt, grads, strict=True)}


def _check_differences(
    operator: Operator,
    cotangents: Mapping[int, np.ndarray],
    found: Mapping[int, np.ndarray],
    rng: np.random.Generator,
    kernels: str,
    fused: bool,
    double: bool,
) -> None:
    """Compares derivatives along random directions: (f(x + h v) − f(x − h v)) / 2h = ⟨∇f, v⟩, f = Σ ⟨cotangent, y⟩."""
    forward, h, tolerance, name = _Forward(operator, np.float32), 1e-3, 3e-3, "differences"
    try:
        if double:
            forward = _Forward(operator, np.float64)
            found = gradients(operator, cotangents, dtype=np.float64, fused=fused)
            h, tolerance, name = 1e-6, 1e-6, "differences (float64)"
    except SurgeryError as error:
        if "NOT_IMPLEMENTED" not in str(error) and "unsupported type" not in str(error):
            raise

    def f(index: int, moved: np.ndarray) -> np.float64:
        outputs = forward([np.asarray(moved) if i == index else x for i, x in enumerate(operator.inputs)])
        return np.float64(sum(np.vdot(c.astype(np.float64), outputs[i]) for i, c in cotangents.items()))

    for index, gradient in found.items():
        array = operator.inputs[index]
        assert array is not None
        x = array.astype(np.float64)
        for _ in range(3):
            v = rng.uniform(-1, 1, x.shape)
            up, down = np.asarray(x + h * v), np.asarray(x - h * v)
            numeric = (f(index, up) - f(index, down)) / (2 * h)
            scale = np.linalg.norm(gradient) * np.linalg.norm(v) + np.sqrt(sum(c.size for c in cotangents.values()))
            miss = abs(np.vdot(gradient, v) - numeric)
            assert miss <= tolerance * scale, (
                f"{name}, {kernels}, input {index}: {np.vdot(gradient, v)} is not {numeric} (error {miss / scale:.1e})"
            )
    _record(operator, kernels, name)


def _built(operator: Operator, cotangents: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The gradients of Σ ⟨cotangent, y⟩ as onnxruntime-training's own builder gives them."""
    import onnx
    from onnxruntime.capi._pybind_state import GradientGraphBuilder

    model = operator.model(np.float32)
    graph = model.graph
    op = Emitter(graph, "loss/")
    parts = [op.ReduceSum(op.Mul(graph.outputs[i], op.constant(c)), keepdims=0) for i, c in sorted(cotangents.items())]
    loss = parts[0] if len(parts) == 1 else op.Add(*parts)
    loss.name, loss.shape, loss.dtype = "loss", ir.Shape(()), ir.DataType.FLOAT
    graph.outputs[:] = [loss]
    names = {i: f"x{i}" for i in operator.differentiated()}
    maker = GradientGraphBuilder(ir.to_proto(model).SerializeToString(), {"loss"}, set(names.values()), "loss")
    maker.build()
    proto = onnx.load_from_string(maker.get_model())
    del proto.graph.output[:]
    for i, name in names.items():
        array = operator.inputs[i]
        assert array is not None
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(f"{name}_grad", onnx.TensorProto.FLOAT, array.shape)
        )
    onnxruntime = runtime.load_runtime()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = operator.feeds(np.float32)
    if any(i.name == "loss_grad" for i in session.get_inputs()):
        feeds["loss_grad"] = np.ones((), np.float32)
    return dict(zip(names, session.run(None, feeds), strict=True))


def _record(operator: Operator, kernels: str, proof: str) -> None:
    path = os.environ.get("SURGERY_PROOFS")
    if not path:
        return
    line = {
        "operator": f"{operator.domain}.{operator.op_type}" if operator.domain else operator.op_type,
        "opset": operator.opset,
        "runtime": runtime.describe(),
        "kernels": kernels,
        "proof": proof,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
