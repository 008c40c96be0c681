"""Where the examples of a batch are divided among threads: only where they are independent of each other, and it pays.

The networks are far too small to be worth a thread: the threshold is taken away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery import runtime
from surgery.marks import set_marks
from surgery.passes import Freeze, InsertDropout
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import training_step
from tests.graphs import parse, squeezenet
from tests.nets import Residual, residual

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
FUSED = runtime.has_training_kernels()


@pytest.fixture(autouse=True)
def _tiny_networks_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.training.shards._WORTH", 1)


# What mixes examples where the axis A is 0, and does not where it is 1 or 2, of [N, 4, 6].
LINKS = {
    "softmax": "OUT = Softmax<axis = A>(IN)",
    "mean": "r_ = ReduceMean<axes = [A]>(IN) OUT = Sub(IN, r_)",
    "first": "r_ = Gather<axis = A>(IN, axis0) OUT = Add(IN, r_)",
    "slice": "r_ = Slice(IN, axis0, axis1, axisA) OUT = Add(IN, r_)",
    "doubled": "d_ = Concat<axis = A>(IN, IN) s_ = Shape(IN) n_ = Gather(s_, axisA) e_ = Add(n_, axis1) "
    "OUT = Slice(d_, axis1, e_, axisA)",
    "size": "s_ = Shape(IN) n_ = Gather(s_, axisA) f_ = Cast<to = 1>(n_) OUT = Div(IN, f_)",
    "transposed": "r_ = Transpose<perm = PERM>(IN) h_ = Softmax<axis = 1>(r_) OUT = Transpose<perm = PERM>(h_)",
    "reshaped": "r_ = Reshape(IN, formA) h_ = Softmax<axis = 1>(r_) OUT = Reshape(h_, form)",
    "expanded": "r_ = ReduceMax<axes = [A]>(IN) s_ = Shape(IN) e_ = Expand(r_, s_) OUT = Mul(IN, e_)",
}
# These do, or might, whatever the axis.
MIXING = {
    "gram": "r_ = Flatten(IN) s_ = Transpose<perm = [1, 0]>(r_) g_ = MatMul(r_, s_) h_ = MatMul(g_, r_) "
    "OUT = Reshape(h_, form)",
    "normalized": "r_ = Unsqueeze(IN, axis2) n_ = MeanVarianceNormalization<axes = [0, 2, 3]>(r_) "
    "OUT = Squeeze(n_, axis2)",
    "recurrent": "r_ = LSTM<hidden_size = 6>(IN, lstm_w, lstm_r) OUT = Squeeze(r_, axis1)",
    "noise": "r_ = RandomNormalLike(IN) OUT = Add(IN, r_)",
    "dropout": "OUT = Dropout(IN)",
}
SIGNATURE = (
    "(float[N,4,6] x) => (float[N,2] y) <int64[1] axis0 = {0}, int64[1] axis1 = {1}, int64[1] axis2 = {2}, "
    "int64[3] form0 = {4,-1,6}, int64[2] form1 = {0,-1}, int64[3] form2 = {0,6,4}, int64[3] form = {-1,4,6}>"
)
WEIGHTS = {"first": [6, 6], "last": [24, 2], "lstm_w": [1, 24, 6], "lstm_r": [1, 24, 6]}


def linked(links: Sequence[tuple[str, int]]) -> ir.Model:
    """A network with these operators, each along an axis, between its two layers."""
    body = "t0 = MatMul(x, first) "
    for number, (name, axis) in enumerate(links):
        text = (LINKS | MIXING)[name].replace("PERM", ["[1, 0, 2]", "[0, 1, 2]", "[0, 2, 1]"][axis])
        text = re.sub(r"_\b", f"_{number}", re.sub(r"A\b", str(axis), text)).replace("IN", f"t{number}")
        body += f"{text.replace('OUT', f'u{number}')} t{number + 1} = Tanh(u{number}) "
    return parse(SIGNATURE, f"{body} f = Flatten(t{len(links)}) y = MatMul(f, last)", WEIGHTS)


@settings(max_examples=30, deadline=None)
@given(
    links=st.lists(st.tuples(st.sampled_from(sorted(LINKS)), st.sampled_from([1, 2, 1, 2, 0])), max_size=4),
    count=st.integers(4, 9),
    shards=st.sampled_from([2, 3]),
)
def test_it_is_divided_where_examples_are_independent(links: list[tuple[str, int]], count: int, shards: int) -> None:
    """And only there; the gradients then are the undivided ones."""
    model, how = linked(links), {"loss": "mean_squared_error", "batch_size": count, "fused": FUSED}
    steps = [training_step(model, chain(Sgd(momentum=0)), threads=threads, **how) for threads in (1, shards)]
    mixing = any(axis == 0 for _, axis in links)
    assert [step.shards for step in steps] == [1, 1 if mixing else min(shards, count // 2)]
    if not mixing:
        random = np.random.default_rng(count)
        batch = [random.normal(size=(count, *dims)).astype(np.float32) for dims in ((4, 6), (2,))]
        whole, parts = (Training(step, CPU) for step in steps)
        np.testing.assert_allclose(whole.run(*batch, 1.0), parts.run(*batch, 1.0), rtol=1e-5)
        for name, weight in parts.weights().items():
            np.testing.assert_allclose(weight, whole.weights()[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("link", [*((name, 0) for name in LINKS), *((name, 1) for name in MIXING)], ids=str)
def test_what_mixes_examples_is_not_divided(link: tuple[str, int]) -> None:
    assert shards_of(linked([link]), loss="mean_squared_error") == 1


def shards_of(model: ir.Model, **how: Any) -> int:
    return training_step(model, **{"links": chain(Sgd()), "batch_size": 8, "threads": 2} | how).shards


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ({}, 2),
        ({"threads": 3}, 3),
        ({"threads": 100}, 4),  # of two examples each
        ({"threads": 100, "batch_size": 100}, 8),
        ({"threads": 1}, 1),
        ({"batch_size": 3}, 1),
        ({"batch_size": 1}, 1),
        ({"accumulate": True}, 1),
        ({"recompute": True}, 1),
        ({"loss": {"name": "cross_entropy", "class_weights": [1] * 10}}, 1),
        ({"loss": {"name": "cross_entropy", "ignore_index": 3}}, 1),
        ({"loss": {"name": "cross_entropy", "label_smoothing": 0.1}}, 2),
    ],
    ids=str,
)
def test_how_a_network_is_trained_decides(how: dict[str, Any], want: int) -> None:
    assert shards_of(squeezenet("f = Flatten(g) y = Softmax(f)"), **how) == want


def test_one_loss_of_several_that_weighs_examples_is_enough() -> None:
    body = "h = MatMul(x, w) y = Softmax(h) z = MatMul(x, v)"
    model = parse("(float[N,4] x) => (float[N,3] y, float[N,2] z)", body, {"w": [4, 3], "v": [4, 2]})
    for weights, want in ((None, 2), ([1.0, 2.0, 1.0], 1)):
        loss = {"z": "mean_squared_error", "y": {"name": "cross_entropy", "class_weights": weights}}
        assert shards_of(model, loss=loss) == want


def test_statistics_that_are_learned_and_dropout() -> None:
    model = residual(Residual())
    assert shards_of(model) == 1
    for name in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
        set_marks(model.graph.initializers[name], trainable=False)
    assert shards_of(model) == 2
    InsertDropout(hidden=0.3)(model)
    assert shards_of(model) == 1


def test_operators_that_are_not_of_onnx() -> None:
    """Whatever they are called, in the frozen part, too."""
    body = "r = Relu(x) s = Reshape(r, form) h = MatMul(s, w) y = MatMul(h, v)"
    signature = "(float[N,4] x) => (float[N,2] y) <int64[2] form = {-1,4}>"
    for domain, want in (("", 2), ("my.kind", 1)):
        model = parse(signature, body, {"w": [4, 3], "v": [3, 2]})
        model.opset_imports["my.kind"] = 1
        model.graph[0].domain = domain
        assert shards_of(model, loss="mean_squared_error") == want


def test_what_a_shard_computes_must_be_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example takes 1686 numbers: c1 and r1 343 each, c10 and r10 490 each, pooled and flat 10 each."""
    for worth, want in ((1680 * 4, 2), (1720 * 4, 1), (2**18, 1)):
        monkeypatch.setattr("surgery.training.shards._WORTH", worth)
        assert shards_of(squeezenet()) == want
    frozen = squeezenet()
    Freeze(layers={"first": 1})(frozen)  # c1 and r1 then do not count
    for worth, want in ((990 * 4, 2), (1010 * 4, 1)):
        monkeypatch.setattr("surgery.training.shards._WORTH", worth)
        assert shards_of(frozen) == want


def test_many_parameters_are_not_worth_adding_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 7·27 + 7 and 10·7 + 10; only those that are trained count."""
    frozen = squeezenet()
    Freeze(layers={"first": 1})(frozen)
    for model, numbers in ((squeezenet(), 276), (frozen, 80)):
        for most, want in ((3 * numbers, 3), (3 * numbers - 1, 2), (2 * numbers - 1, 1)):
            monkeypatch.setattr("surgery.training.shards._GRADIENTS", most)
            assert shards_of(model, threads=3) == want


COUNT = "d = Shape(x) n = Gather(d, zero)"
TRAPS = {
    "reversed": "t = MatMul(x, v) r = Slice(t, back, end, zero, back) h = Mul(t, r)",
    "shifted": "t = MatMul(x, v) r = Pad(t, shift) h = Mul(t, r)",
    "power of the size": f"{COUNT} t = MatMul(x, v) a = Tanh(t) h = Pow(a, n)",
    "if at least 8": f"{COUNT} c = GreaterOrEqual(n, eight) t = MatMul(x, v) a = Tanh(t) h = Where(c, a, t)",
    "size modulo 4": f"{COUNT} c = Mod(n, four) f = Cast<to = 1>(c) t = MatMul(x, v) h = Mul(t, f)",
    "slice as long as the size": f"{COUNT} t = MatMul(x, v) r = Slice(t, zero, n, one) "
    "a = ReduceSum(r, one) h = Add(t, a)",
    "dropout on weights": "u = Dropout(v) h = MatMul(x, u)",
    "noise on weights": "r = RandomNormal<shape = [1, 4], seed = 3.0>() t = MatMul(x, v) h = Add(t, r)",
    "the batch's statistics though frozen": "t = MatMul(x, v) h, k, l = BatchNormalization<training_mode = 1>"
    "(t, s, b, m, q)",
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_looks_independent_and_is_not(name: str) -> None:
    signature = (
        "(float[N,4] x) => (float[N,2] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] back = {-1}, "
        "int64[1] end = {-100000}, int64[4] shift = {1,0,-1,0}, int64[1] eight = {8}, int64[1] four = {4}>"
    )
    weights = {"v": [4, 4], "w": [4, 2], "s": [4], "b": [4], "m": [4], "q": [4]}
    model = parse(signature, f"{TRAPS[name]} y = MatMul(h, w)", weights)
    for statistic in ("m", "q"):
        set_marks(model.graph.initializers[statistic], trainable=False)
    assert shards_of(model, loss="mean_squared_error") == 1


def test_an_input_without_a_batch() -> None:
    body = "t = MatMul(x, v) h = Mul(t, by) y = MatMul(h, w)"
    model = parse("(float[N,4] x, float by) => (float[N,2] y)", body, {"v": [4, 4], "w": [4, 2]})
    assert shards_of(model, loss="mean_squared_error") == 1


def test_embeddings() -> None:
    body = "e = Gather(table, x) f = Flatten(e) y = MatMul(f, w)"
    model = parse("(int64[N,3] x) => (float[N,2] y)", body, {"table": [9, 4], "w": [12, 2]})
    assert shards_of(model, loss="mean_squared_error") == 2
