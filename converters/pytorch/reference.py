"""What PyTorch itself computes, to compare a conversion with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.registry import load_extra, reference
from surgery.errors import SurgeryError

__all__ = ["run_pytorch"]


@reference("PyTorch")
def run_pytorch(
    source: Path,
    inputs: dict[str, np.ndarray],
    *,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """Returns the outputs in their order, flattened where the network returns tuples or mappings."""
    load_extra("torch", "pytorch", "comparing with PyTorch")
    import torch
    from torch.utils import _pytree as tree

    from converters.pytorch.convert import open_network
    from converters.pytorch.export import set_modes

    network = open_network(source, weights, arguments, dropout=False)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    try:
        with torch.no_grad():
            if isinstance(network, torch.export.ExportedProgram):
                set_modes(network.graph_module, dropout=False)
                found = network.module()(*tensors.values())
            else:
                found = network(**tensors)
    except Exception as error:  # whatever the network's code does
        raise SurgeryError(f"{source}: PyTorch cannot run it ({str(error).strip().splitlines()[0]})") from error
    return [tensor.numpy() for tensor in tree.tree_leaves(found) if isinstance(tensor, torch.Tensor)]
