"""Surgery: convert a pretrained network to ONNX, operate on its graph, fine-tune it with ONNX Runtime."""

__version__ = "0.1.0"
