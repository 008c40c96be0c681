"""Differentiation of ONNX graphs, by rules that emit ONNX operators."""

from surgery.autodiff.backward import Context, backward, fused_rule, no_gradient, registered, rule

__all__ = ["Context", "backward", "fused_rule", "no_gradient", "registered", "rule"]
