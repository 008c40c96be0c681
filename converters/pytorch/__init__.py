"""PyTorch's networks: torch.export's .pt2, TorchScript, and importable code with a state_dict."""

from converters.pytorch.convert import convert_pytorch
from converters.pytorch.reference import run_pytorch

__all__ = ["convert_pytorch", "run_pytorch"]
