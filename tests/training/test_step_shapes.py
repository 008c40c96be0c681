"""Networks whose outputs have no shape, or one for a fixed batch: what the step says of them."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

import surgery
from surgery.errors import SurgeryError
from surgery.training.optimizers import Sgd, chain
from surgery.training.step import training_step

WEIGHTS = "<float[3,2] w = {1,2,3,4,5,6}, float[2,2] v = {1,2,3,4}>"


def network(body: str, domains: str = "") -> ir.Model:
    head = f'<ir_version: 8, opset_import: ["" : 17{domains}]> g (float[4,3] x) => (float[4,2] y)'
    return ir.from_proto(onnx.parser.parse_model(f"{head} {WEIGHTS} {{ {body} }}"))


@pytest.mark.parametrize(
    ("body", "domains", "operator"),
    [
        ("a = Relu(x) h = my.kind.Fancy(a) b = Relu(h) c = MatMul(b, w) y = MatMul(c, v)", ', "my.kind" : 1', "Fancy"),
        ("a = Relu(x) h = Homemade(a) b = Relu(h) c = MatMul(b, w) y = MatMul(c, v)", "", "Homemade"),
    ],
)
def test_the_first_operator_whose_shape_cannot_be_inferred_is_named(body: str, domains: str, operator: str) -> None:
    with pytest.raises(SurgeryError, match=rf"the output 'y' has no known shape.*{operator} '.*'") as caught:
        training_step(network(body, domains), chain(Sgd()))
    assert "batch" not in str(caught.value)


def test_a_fixed_batch_names_the_pass_that_frees_it() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4,3,1] x) => (float[4,2] y) '
        "<float[3,2] w = {1,2,3,4,5,6}, int64[2] s = {4,3}> { a = Reshape(x, s) y = MatMul(a, w) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(SurgeryError, match=r"whatever the batch.*`set_batch: N`"):
        training_step(model, chain(Sgd()))
    surgery.apply(model, [{"set_batch": "N"}])
    training_step(model, chain(Sgd()))
