"""Differentiation of ONNX graphs, by rules that emit ONNX operators."""

from surgery.autodiff.api import gradient
from surgery.autodiff.backward import Context, backward, fused_rule, no_gradient, registered, rule
from surgery.autodiff.missing import why_no_gradient
from surgery.autodiff.prepare import prepare

__all__ = [
    "Context",
    "backward",
    "fused_rule",
    "gradient",
    "no_gradient",
    "prepare",
    "registered",
    "rule",
    "why_no_gradient",
]
