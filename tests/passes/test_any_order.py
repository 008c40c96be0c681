"""Any passes in any order either leave a checked, runnable model or say what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.recipe import apply
from surgery.runtime import session
from tests.graphs import cnn, mlp, parse, squeezenet


def residual() -> ir.Model:
    """A residual block, two outputs, a dropout and a weight that two layers share."""
    return parse(
        "(float[N,3,8,8] x) => (float[N,4] y, float[N,6] z)",
        "c1 = Conv(x, w1, b1) n1 = BatchNormalization(c1, s, b, m, v) r1 = Relu(n1) d = Dropout(r1) "
        "c2 = Conv<pads = [1, 1, 1, 1]>(d, w2) a = Add(c2, r1) r2 = PRelu(a, slope) g = GlobalAveragePool(r2) "
        "f = Flatten(g) l = Gemm<transB = 1>(f, w3, b3) y = Softmax(l) t = Transpose(w4) k = MatMul(f, t) z = Tanh(k)",
        {
            "w1": [5, 3, 1, 1],
            "b1": [5],
            "s": [5],
            "b": [5],
            "m": [5],
            "v": [5],
            "w2": [5, 5, 3, 3],
            "slope": [5, 1, 1],
            "w3": [4, 5],
            "b3": [4],
            "w4": [6, 5],
        },
    )


def sequence() -> ir.Model:
    """A sequence through layers that share a weight."""
    return parse(
        "(float[N,T,8] x) => (float[N,T,5] y)",
        "a = MatMul(x, w) ab = Add(a, b) e = Relu(ab) s = MatMul(e, w) o = Sigmoid(s) h = MatMul(o, v) y = Add(h, c)",
        {"w": [8, 8], "b": [8], "v": [8, 5], "c": [5]},
    )


MODELS = {
    "cnn": cnn,
    "mlp": mlp,
    "old mlp": lambda: mlp(9),
    "squeezenet": squeezenet,
    "residual": residual,
    "sequence": sequence,
}
NAMES = ["c1", "r1", "c2", "n2", "h", "a", "b", "r", "y", "c10", "d", "f", "g", "p1", "n1", "w", "hidden", "nothing"]
selectors = st.one_of(
    st.sampled_from([*NAMES, "all", "head", "c*", "*"]),
    st.builds(lambda n: {"first": n}, st.integers(1, 4)),
    st.builds(lambda n: {"last": n}, st.integers(1, 4)),
    st.builds(lambda n: {"until": n}, st.sampled_from(NAMES)),
    st.builds(lambda a, b: {"from": a, "to": b}, st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.builds(lambda t: {"type": t}, st.sampled_from(["Conv", "Gemm", "Relu", "Dropout", "Softmax", "MatMul"])),
)
units = st.integers(1, 7)
activations = st.sampled_from(["linear", "relu", "tanh", "softmax", "log_softmax", "sigmoid", "gelu", "elu"])
initializers = st.sampled_from(["glorot", "he", "zeros", "he_uniform"])
outputs = st.sampled_from([None, "y", "z", "out"])
rates = st.sampled_from([0.0, 0.1, 0.5])


def step(name: str, /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.fixed_dictionaries(fields)})


steps = st.one_of(
    step(
        "replace_head",
        units=units,
        activation=activations,
        initializer=initializers,
        keep=st.lists(st.integers(0, 4), max_size=1),
        output=outputs,
    ),
    step("add_hidden", units=units, activation=activations, output=outputs, name=st.sampled_from(["hidden", "more"])),
    step("freeze", layers=selectors),
    step("unfreeze", layers=selectors),
    step("insert_dropout", hidden=rates, input=rates),
    step("insert_dropout", rate=rates, layers=selectors),
    step("max_norm", value=st.just(2), layers=selectors),
    step("learning_rate", layers=selectors, multiplier=rates),
    step("reinitialize", layers=selectors, initializer=initializers),
    step("cut", layer=st.sampled_from(NAMES)),
    step(
        "rename",
        names=st.dictionaries(
            st.sampled_from([*NAMES, "x"]), st.sampled_from(["out", "image", "c1"]), min_size=1, max_size=2
        ),
    ),
    step("remove", layers=selectors),
    step("replace_activation", layers=selectors, activation=activations),
    step("set_batch", size=st.sampled_from([1, 2, "batch"])),
    step("set_input_size", size=st.sampled_from([9, [12, 10]]), new_weights=st.booleans()),
    step("set_preprocessing", preset=st.sampled_from(["torchvision", "tf"])),
    step("to_fully_convolutional"),
    step("fold_batchnorm", layers=selectors),
    step("unfold", layers=selectors),
    step("replace_head", labels=st.just(["u", "v", "w"]), activation=activations),
    step("merge_labels", groups=st.sampled_from([{"uv": ["u", "v"]}, {"w": ["v", "w"]}]), output=outputs),
    step("insert", layers=selectors, operator=st.sampled_from(["Identity", "LeakyRelu", "Neg"])),
    step("prune_outputs", keep=st.sampled_from(["y", "z", "out"])),
    step("cast", to=st.just("float16"), keep=selectors),
    step("widen", layers=selectors, units=units),
    step("batch_normalization", policy=st.sampled_from(["frozen", "fixed_statistics", "trained"])),
    step("discriminative_learning_rates", factor=st.sampled_from([1.0, 2.6])),
    step("run", target=st.sampled_from(["IdentityEliminationPass", "CommonSubexpressionEliminationPass"])),
)


def check(model: ir.Model) -> None:
    """Checks a model, and runs it on inputs of the shapes that it says."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    feeds = {
        str(i.name): np.ones([d if isinstance(d, int) else 2 for d in i.shape or ()], np.float32)
        for i in model.graph.inputs
    }
    found = session(model, ["CPUExecutionProvider"], threads=1).run(None, feeds)
    for output, array in zip(model.graph.outputs, found, strict=True):
        assert output.shape is not None
        assert len(output.shape) == array.ndim
        for said, is_ in zip(output.shape, array.shape, strict=True):
            assert not isinstance(said, int) or said == is_


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(recipe=st.lists(steps, min_size=1, max_size=6))
def test_any_order(name: str, recipe: list[dict[str, Any]]) -> None:
    model = MODELS[name]()
    for item in recipe:
        before = model.clone()
        try:
            apply(model, [item])
        except SurgeryError:
            model = before
            continue
        check(model)
        assert all(p.is_initializer() for layer in layers(model) for p in layer.parameters.values())
        again = model.clone()
        try:
            changes = apply(again, [item])
        except SurgeryError:
            continue  # what it was about is gone
        if next(iter(item)) not in ("remove", "run"):  # which say that they are not, or cannot know
            assert not changes, f"{item} is not idempotent: {changes}"
